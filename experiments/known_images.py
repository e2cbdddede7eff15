"""Which images a trained network has learned from, and what follows for its scores."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from experiments import flags as shared
from nucseg_jax import pretrained
from nucseg_jax.checkpoints import read_config, read_fingerprints
from nucseg_jax.config import Config, DataConfig
from nucseg_jax.data.index import (
    DatasetError,
    Example,
    fingerprint,
    join,
    load_subsets,
)


def is_same_folder(settings: DataConfig, trained: DataConfig) -> bool:
    """Tells whether a network was trained on images of this folder."""
    before = shared.resolve_data(trained)
    return os.path.realpath(settings.data_dir) == os.path.realpath(before.data_dir)


def warn_of_learned(
    name: str, before: Mapping[str, str], trained: Config, examples: Sequence[Example]
) -> None:
    """Tells how many of the images of its own folder a network learned from.

    Args:
      name: What to call the network.
      before: From `read_fingerprints`.
      trained: Settings of its training.
      examples: The images.
    """
    try:
        subsets = load_subsets(shared.resolve_data(trained.data))
    except DatasetError:
        subsets = {"train": [], "val": []}
    names = trained.train.learned_subsets
    if any(before[subset] != fingerprint(subsets[subset]) for subset in names):
        print(
            f"WARNING: the folder has changed since {name} learned from it, and it "
            "may know some of these images"
        )
        return
    ids = {example.id for example in join(subsets, names)}
    num_learned = sum(example.id in ids for example in examples)
    if num_learned:
        print(
            f"WARNING: {name} learned from {num_learned} of these {len(examples)} "
            "images"
        )


def warn_of_exported(name: str) -> None:
    """Tells that nothing is known of what a network has learned from."""
    card = pretrained.resolve(name) / "card.md"
    which = f"its card says which, {card}" if card.exists() else "it does not say"
    print(
        f"WARNING: {name} was exported without a list of the images that it "
        f"learned from ({which}): make sure that none of them is among these"
    )


def warn_of_beginning(config: Config, subsets: Mapping[str, list[Example]]) -> None:
    """Tells if the network that a training begins with may know what scores it.

    Args:
      config: Of the training.
      subsets: Its images.
    """
    name, learned = config.train.init, config.train.learned_subsets
    scored = join(subsets, [subset for subset in subsets if subset not in learned])
    if not name or not scored:
        return
    folder = pretrained.resolve(name)
    trained, before = read_config(folder), read_fingerprints(folder)
    if not before:
        print(f"{len(scored)} images are not learned from, but score the network.")
        warn_of_exported(name)
    elif is_same_folder(shared.resolve_data(config.data), trained.data):
        warn_of_learned(name, before, trained, scored)
    tell_beginning(name, trained)


def tell_beginning(name: str, trained: Config) -> None:
    """Tells what a network began with, for it may know what that had learned from."""
    if trained.train.init:
        print(
            f"{name} began with {trained.train.init}, and knows what that had learned "
            "from, too"
        )
