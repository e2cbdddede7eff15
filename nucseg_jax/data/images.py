"""Reads single images, masks and label images whole, as training needs them.

Of any format that `planes` opens, but with one picture of gray or RGB. EXIF rotation
and TIFF orientation are applied to images, masks and label images alike; transparency
is dropped. The size is read from the header and checked before any pixel is decoded.
"""

from __future__ import annotations

import pathlib

import numpy as np

from nucseg_jax.data import errors
from nucseg_jax.data.errors import MAX_PIXELS, ImageError
from nucseg_jax.data.formats.detect import SUFFIXES, is_jpeg, open_stacks
from nucseg_jax.data.hue import in_gray
from nucseg_jax.data.intensity import to_rgb
from nucseg_jax.data.planes import plane_of_array

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "ImageError",
    "is_image",
    "read_image",
    "read_label_image",
    "read_mask",
    "to_rgb",
]


def is_image(path: pathlib.Path) -> bool:
    """Tells whether the file's name is one of an image that can be read."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def read_image(path: str | pathlib.Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads an image of any supported kind.

    Colours of one hue on black become gray as `hue` says, and pixels are brought to
    RGB in [0, 1] as `to_rgb` says.

    Args:
      path: PNG, JPEG, BMP or TIFF file with one plane.
      max_pixels: Refuse larger images before decoding them.

    Returns:
      float32 [H, W, 3] in [0, 1].

    Raises:
      ImageError: If the file is missing, damaged, too large or no single image.
    """
    path = pathlib.Path(path)
    pixels = _read_pixels(path, max_pixels)
    if pixels.ndim == 3 and pixels.shape[-1] != 3:
        raise ImageError(
            f"{path}: has {pixels.shape[-1]} channels and does not say what they are; "
            "gray or RGB is wanted"
        )
    seen = in_gray(plane_of_array(pixels)).segmented
    return to_rgb(pixels[..., seen] if pixels.ndim == 3 else pixels, name=str(path))


def read_mask(path: str | pathlib.Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads a binary mask: any stored value but zero is foreground.

    Returns:
      uint8 [H, W] of 0 and 1.

    Raises:
      ImageError: As `read_image`, or if the file is a JPEG.
    """
    path = pathlib.Path(path)
    pixels = _read_truth(path, max_pixels)
    with np.errstate(invalid="ignore"):  # Some NaN warn when they are looked at.
        is_nucleus = pixels != 0
    if is_nucleus.ndim == 3:
        is_nucleus = is_nucleus.any(axis=-1)
    return is_nucleus.astype(np.uint8)


def read_label_image(
    path: str | pathlib.Path, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Reads a label image: 0 is background, every other value one nucleus.

    Returns:
      int32 [H, W].

    Raises:
      ImageError: As `read_image`, or if the file is a JPEG, has colours, or values
        that are not whole numbers from 0 to 2^31 - 1.
    """
    path = pathlib.Path(path)
    pixels = _read_truth(path, max_pixels)
    if pixels.ndim == 3:
        raise ImageError(
            f"{path}: a label image has one channel, this file has {pixels.shape[-1]}"
        )
    with np.errstate(invalid="ignore"):
        labels = pixels.astype(np.int32)
        is_same = labels == pixels  # Finds what cannot be cast.
    if not is_same.all() or (labels < 0).any():
        raise ImageError(f"{path}: label values must be whole and from 0 to 2^31 - 1")
    return labels


def _read_truth(path: pathlib.Path, max_pixels: int) -> np.ndarray:
    """Reads numbers, not light: as they are stored, and not about what they were."""
    with errors.naming(path):
        if is_jpeg(path):
            raise ImageError(
                f"{path}: is a JPEG, around whose edges values change; save masks and "
                "label images as PNG or TIFF"
            )
    return _read_pixels(path, max_pixels, as_stored=True)


def _read_pixels(
    path: pathlib.Path, max_pixels: int, *, as_stored: bool = False
) -> np.ndarray:
    """Decodes a file to [H, W] or [H, W, C] of its own dtype; 1 bit becomes bool.

    Args:
      path: The file.
      max_pixels: Refuse larger images before decoding them.
      as_stored: Whether zero stays zero where it means white.
    """
    with (
        errors.naming(path),
        open_stacks(path, axes=None, max_pixels=max_pixels) as stacks,
    ):
        if len(stacks) != 1:
            raise ImageError(f"{path}: holds {len(stacks)} images, not one")
        stack = stacks[0]
        if set(stack.axes) - set("SYX"):
            raise ImageError(
                f"{path}: has the axes {stack.axes} {stack.lengths}; one plane of gray "
                "or RGB is wanted, so split the stack first"
            )
        errors.check_size(path, stack.height * stack.width, max_pixels)
        read = (stack.read_stored if as_stored else None) or stack.read
        pixels = read((), slice(0, stack.height), slice(0, stack.width))
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
