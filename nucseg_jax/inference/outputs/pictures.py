"""Results as pictures."""

from __future__ import annotations

import pathlib

import numpy as np
import PIL.Image

from nucseg_jax.files import replacing

OUTLINE_COLOUR = (255, 214, 0)  # Yellow: seen on black, on gray and on purple stain.


def write_png(path: pathlib.Path, pixels: np.ndarray) -> None:
    """Writes uint8 [H, W] or [H, W, 3], or uint16 [H, W], creating folders.

    Raises:
      OSError: If the disk is full or the folder cannot be written; no part of the
        file is left behind.
    """
    with replacing(path) as temporary:
        save_png(temporary, pixels)


def save_png(
    path: pathlib.Path, pixels: np.ndarray, *, compress_level: int = 6
) -> None:
    """Writes a picture under just this name, which needs no ending."""
    image = PIL.Image.fromarray(pixels)
    image.save(path, format="PNG", compress_level=compress_level)


def mask_picture(foreground: np.ndarray) -> np.ndarray:
    """Turns bool [H, W] to uint8, 255 = nucleus."""
    return np.where(foreground, np.uint8(255), np.uint8(0))


def probability_picture(probs: np.ndarray) -> np.ndarray:
    """Turns probabilities [H, W] to uint8, 255 = certain."""
    scaled = probs * 255
    return np.round(scaled, out=scaled).astype(np.uint8)


def stretch_contrast(image: np.ndarray) -> np.ndarray:
    """Stretches an image to its 1st and 99.8th percentile, for looking at."""
    low, high = np.percentile(image, (1, 99.8))
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1)
