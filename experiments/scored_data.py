"""The images that a trained network is scored on, and how far to trust the score."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from experiments import flags as shared
from experiments.device import start_device
from experiments.known_images import (
    is_same_folder,
    tell_beginning,
    warn_of_exported,
    warn_of_learned,
)
from nucseg_jax import pretrained
from nucseg_jax.checkpoints import read_fingerprints
from nucseg_jax.config import Config, DataConfig
from nucseg_jax.data.index import (
    Example,
    describe_subsets,
    fingerprint,
    get_subset,
    load_subsets,
)
from nucseg_jax.data.numbering import check_numbered


@dataclasses.dataclass(frozen=True)
class ScoredData:
    """What is scored, and what decoding and thresholds are tuned on.

    Attributes:
      settings: The folder, and how it is divided.
      examples: To score.
      subsets: All of the folder.
    """

    settings: DataConfig
    examples: list[Example]
    subsets: Mapping[str, list[Example]]

    @property
    def val(self) -> list[Example]:
        """What is tuned on.

        Raises:
          DatasetError: If there is nothing.
        """
        return get_subset(self.settings, self.subsets, "val")


def load_scored_data(checkpoint: str, subset: str, trained: Config) -> ScoredData:
    """Lists the images to score, and tells of them, of the device, and of doubts.

    Args:
      checkpoint: Folder of the run, or name of a network of the project's.
      subset: train, val, test, or all of them.
      trained: Settings of the training; the command line may name other data.
    """
    settings = shared.choose_data(trained.data)
    subsets = load_subsets(settings)
    examples = get_subset(settings, subsets, subset)
    check_numbered(examples)
    print(start_device())
    print(describe_subsets(settings, subsets))
    before = read_fingerprints(pretrained.resolve(checkpoint))
    if not before:
        warn_of_exported(checkpoint)
        if not shared.given(["data_dir"]):
            print("WARNING: no --data_dir is named: the project's sample is scored")
    elif is_same_folder(settings, trained.data):
        as_trained = settings == dataclasses.replace(
            trained.data, data_dir=settings.data_dir
        )
        is_its_own = as_trained and subset in before
        if is_its_own:
            _warn_of_changes(subset, before[subset], examples)
        if not is_its_own or (subset == "val" and trained.train.learn_val):
            warn_of_learned("the network", before, trained, examples)
        if trained.train.learn_val and subset != "val":
            print("the network learned from val: what is tuned there is tuned on that")
    tell_beginning("the network", trained)
    return ScoredData(settings, examples, subsets)


def describe_split(settings: DataConfig) -> dict[str, str | float]:
    """Tells which images are which: by a split that has a name, or how drawn."""
    names = ["split"] if settings.split else ["split", "val_fraction", "split_seed"]
    return {name: getattr(settings, name) for name in names}


def _warn_of_changes(subset: str, before: str, examples: Sequence[Example]) -> None:
    """Tells if the training had other images or truth as this subset."""
    if before != fingerprint(examples):
        print(
            f"WARNING: images or truth of {subset} have changed since training; these "
            "numbers do not compare with the run's own"
        )
