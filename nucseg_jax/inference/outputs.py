"""Writes results as pictures: each file appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import PIL.Image
import skimage.segmentation

OUTLINE_COLOUR = (255, 214, 0)  # Yellow: seen on black, on gray and on purple stain.


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary file to write, which takes the name `path` at the end.

    Folders are created. After an error nothing is left behind, and a file that was
    there before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_png(path: pathlib.Path, pixels: np.ndarray) -> None:
    """Writes uint8 [H, W] or [H, W, 3], or uint16 [H, W], creating folders.

    Raises:
      OSError: If the disk is full or the folder cannot be written; no part of the
        file is left behind.
    """
    with replacing(path) as temporary:
        PIL.Image.fromarray(pixels).save(temporary, format="PNG")


def mask_picture(foreground: np.ndarray) -> np.ndarray:
    """Turns bool [H, W] to uint8, 255 = nucleus."""
    return np.where(foreground, np.uint8(255), np.uint8(0))


def probability_picture(probs: np.ndarray) -> np.ndarray:
    """Turns probabilities [H, W] to uint8, 255 = certain."""
    return np.round(probs * 255).astype(np.uint8)


def overlay_picture(image: np.ndarray, label_image: np.ndarray) -> np.ndarray:
    """Draws the outlines of nuclei over an image, stretched to its own contrast.

    Args:
      image: float32 [H, W, 3] in [0, 1].
      label_image: int32 [H, W].

    Returns:
      uint8 [H, W, 3].
    """
    picture = np.round(stretch_contrast(image) * 255).astype(np.uint8)
    outlines = skimage.segmentation.find_boundaries(label_image, mode="inner")
    picture[outlines] = OUTLINE_COLOUR
    return picture


def stretch_contrast(image: np.ndarray) -> np.ndarray:
    """Stretches an image to its 1st and 99.8th percentile, for looking at."""
    low, high = np.percentile(image, (1, 99.8))
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1)
