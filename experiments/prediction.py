"""What the flags say that all programs that predict have."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments.flags import parse_threshold
from nucseg_jax import pretrained
from nucseg_jax.inference.run import Options


def read_options(save: Sequence[str]) -> Options:
    """Reads from the flags what to do with each file.

    Raises:
      ValueError: If a number is negative.
    """
    values = flags.FLAGS
    for name, value in (("scale", values.scale), ("pixel_size", values.pixel_size)):
        if value < 0:
            raise ValueError(f"{name} is {value}; it must not be negative")
    return Options(
        save=tuple(save),
        channel=values.channel or None,
        axes=values.axes or None,
        pixel_size=values.pixel_size or None,
        scale=values.scale or None,
        max_pixels=values.max_pixels,
    )


def read_network() -> dict[str, Any]:
    """Reads from the flags what `load_segmenter` takes, in any working directory."""
    values = flags.FLAGS
    name = values.checkpoint
    return {
        "checkpoint": os.path.abspath(name) if name and os.path.isdir(name) else name,
        "mode": values.mode or None,
        "threshold": parse_threshold(values.threshold) if values.threshold else None,
        "tta": int(values.tta),
        "tile": values.tile or None,
        "dtype": values.dtype or None,
    }


def read_settings() -> dict[str, Any]:
    """Reads from the flags what results depend on, to be kept beside them."""
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
    checkpoint = pretrained.resolve(flags.FLAGS.checkpoint).absolute()
    return {"checkpoint": str(checkpoint)} | {
        name: flags.FLAGS[name].value for name in names
    }
