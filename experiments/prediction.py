"""What the flags say that all programs that predict have."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from experiments.flags import parse_threshold
from nucseg_jax import pretrained
from nucseg_jax.checkpoints import read_digest
from nucseg_jax.inference.jobs import Options


def read_options(save: Sequence[str]) -> Options:
    """Reads from the flags what to do with each file.

    Raises:
      ValueError: If the pixel size or the scale cannot be.
    """
    values = flags.FLAGS
    return Options(
        save=tuple(save),
        channel=values.channel or None,
        axes=values.axes or None,
        pixel_size=values.pixel_size or None,
        scale=values.scale or None,
        max_pixels=values.max_pixels,
    )


def read_network(checkpoint: str) -> dict[str, Any]:
    """Reads from the flags what `load_segmenter` takes, in any working directory.

    Args:
      checkpoint: The one that is named, or chosen.
    """
    values = flags.FLAGS
    if os.path.isdir(checkpoint):
        checkpoint = os.path.abspath(checkpoint)
    return {
        "checkpoint": checkpoint,
        "mode": values.mode or None,
        "threshold": parse_threshold(values.threshold) if values.threshold else None,
        "tta": int(values.tta),
        "tile": values.tile or None,
        "dtype": values.dtype or None,
    }


def read_settings(checkpoint: str) -> dict[str, Any]:
    """Reads from the flags what results depend on, to be kept beside them.

    Args:
      checkpoint: The one that is named, or chosen.
    """
    names = (
        "mode",
        "threshold",
        "tta",
        "dtype",
        "scale",
        "pixel_size",
        "channel",
        "axes",
    )
    folder = pretrained.resolve(checkpoint).absolute()
    network = {"checkpoint": str(folder), "network": read_digest(folder)[:16]}
    return network | {name: flags.FLAGS[name].value for name in names}


def choose_checkpoint(choose: Callable[[], str]) -> str:
    """Returns the checkpoint that is named; else chooses a network and tells which."""
    if flags.FLAGS.checkpoint:
        return flags.FLAGS.checkpoint
    name = choose()
    print(f"network: {name}, which comes with the project")
    return name


def tell_retired(count: int) -> None:
    """Prints how many earlier results do not count any more, if there are any."""
    if count:
        print(
            f"{count} earlier result(s), under a name or of contents that the file no "
            "longer has, left out of the tables; labels and pictures stay"
        )
