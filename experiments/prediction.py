"""The flags that all programs that predict have, and what they say."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

import nucseg_jax
from experiments import flags as shared
from nucseg_jax import pretrained
from nucseg_jax.checkpoints import read_config, read_digest
from nucseg_jax.inference.jobs import Options
from nucseg_jax.inference.segmenter import choose_decoding

flags.disclaim_key_flags()  # They show in the help of who asked.


def define_flags() -> None:
    """Asks for the flags of the network and of how it sees images."""
    shared.checkpoint(required=False)
    shared.mode()
    shared.threshold()
    shared.tta()
    shared.tile()
    shared.dtype()
    shared.scale()
    shared.pixel_size()
    shared.channel()
    shared.axes()
    shared.max_pixels()


def read_options(save: Sequence[str]) -> Options:
    """Reads from the flags what to do with each file.

    Raises:
      ValueError: If the pixel size or the scale is out of range.
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
    if not pretrained.is_named(checkpoint):
        checkpoint = os.path.abspath(checkpoint)
    return {
        "checkpoint": checkpoint,
        "mode": values.mode or None,
        "threshold": _read_threshold(values.threshold),
        "tta": int(values.tta),
        "tile": values.tile or None,
        "dtype": values.dtype or None,
    }


def _read_threshold(text: str) -> float | None:
    return shared.parse_threshold(text) if text else None


def find_settings(network: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Finds what results depend on, to be kept beside them.

    Args:
      network: From `read_network`.
      options: From `read_options`.

    Returns:
      JSON values; None is what each file says of itself.
    """
    folder = pretrained.resolve(network["checkpoint"]).absolute()
    config = read_config(folder, network["mode"])
    decoding = choose_decoding(config.decoding, network["mode"], network["threshold"])
    return {
        "checkpoint": str(folder),
        "network": read_digest(folder)[:16],
        "version": nucseg_jax.__version__,
        **dataclasses.asdict(decoding),
        "head": config.fast_head if decoding.mode == "fast" else "all",
        "tta": network["tta"],
        "dtype": network["dtype"] or config.model.dtype,
        "scale": options.scale,
        "pixel_size": options.pixel_size,
        "channel": options.channel,
        "axes": options.axes,
    }


def choose_checkpoint(choose: Callable[[], str]) -> str:
    """Returns the checkpoint that is named; else chooses a network and tells which."""
    if flags.FLAGS.checkpoint:
        return flags.FLAGS.checkpoint
    name = choose()
    print(f"network: {name}, which comes with the project")
    return name


def tell_foreign(paths: Sequence[pathlib.PurePath]) -> None:
    """Prints how many images are of kinds that cannot be opened, if there are any."""
    kinds = collections.Counter(path.suffix.lower() for path in paths)
    if kinds:
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        print(f"WARNING: not read: {counts}; save them as TIFF or OME-Zarr first")


def tell_retired(count: int) -> None:
    """Prints how many earlier results do not count any more, if there are any."""
    if count:
        print(
            f"{count} earlier result(s), under a name or of contents that the file no "
            "longer has, left out of the tables; labels and pictures stay"
        )
