"""The images that a trained network is scored on, and how far to trust the score."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import NamedTuple

from experiments import flags as shared
from experiments.device import start_device
from nucseg_jax import pretrained
from nucseg_jax.checkpoints import read_fingerprints
from nucseg_jax.config import DataConfig
from nucseg_jax.data.index import (
    Example,
    describe_subsets,
    fingerprint,
    get_subset,
    load_subsets,
)
from nucseg_jax.data.truth import check_numbered


class ScoredData(NamedTuple):
    """What is scored, and what decoding and thresholds are tuned on."""

    settings: DataConfig
    examples: list[Example]
    val: list[Example]


def load_scored_data(checkpoint: str, subset: str, trained: DataConfig) -> ScoredData:
    """Lists the images to score, and tells of them, of the device, and of doubts.

    Args:
      checkpoint: Folder of the run, or name of a network of the project's.
      subset: train, val or test.
      trained: Data of the training; the command line may name others.
    """
    settings = shared.choose_data(trained)
    subsets = load_subsets(settings)
    examples = get_subset(settings, subsets, subset)
    check_numbered(examples)
    print(start_device())
    print(describe_subsets(settings, subsets))
    as_trained = _are_as_trained(settings, trained)
    _warn_of_data(checkpoint, subset, examples, as_trained=as_trained)
    return ScoredData(settings, examples, subsets["val"])


def describe_split(settings: DataConfig) -> dict[str, str | float]:
    """Tells which images are which: by a split that has a name, or how drawn."""
    names = ["split"] if settings.split else ["split", "val_fraction", "split_seed"]
    return {name: getattr(settings, name) for name in names}


def _are_as_trained(settings: DataConfig, trained: DataConfig) -> bool:
    """Whether the data are those of the training, also where they are named again."""
    before = shared.resolve_data(trained)
    places = {os.path.realpath(data.data_dir) for data in (settings, before)}
    return len(places) == 1 and settings == dataclasses.replace(
        before, data_dir=settings.data_dir
    )


def _warn_of_data(
    checkpoint: str, subset: str, examples: Sequence[Example], *, as_trained: bool
) -> None:
    """Tells if these are not, or may not be, what a training had as that subset."""
    folder = pretrained.resolve(checkpoint)
    before = read_fingerprints(folder)
    if not before:
        card = folder / "card.md"
        which = f"its card says which, {card}" if card.exists() else "it does not say"
        print(
            f"WARNING: {checkpoint} was exported without a list of the images that it "
            f"learned from ({which}): make sure that none of them is among these"
        )
        if not shared.given(["data_dir"]):
            print("WARNING: no --data_dir is named: the project's sample is scored")
        return
    wanted = before.get(subset)
    if as_trained and wanted and wanted != fingerprint(examples):
        print(
            f"WARNING: images or truth of {subset} have changed since training; these "
            "numbers do not compare with the run's own"
        )
