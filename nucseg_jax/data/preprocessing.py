"""Deterministic preparation of an image, the same in training and in prediction.

Images are float32 [H, W, 3] in [0, 1] outside and uint8 inside: CLAHE works on 8 bits,
8-bit files lose nothing, and a cache of them takes a quarter of the memory.
"""

from __future__ import annotations

import cv2
import numpy as np

from nucseg_jax.config import DataConfig
from nucseg_jax.data.errors import ImageError

_CLAHE_TILES = (8, 8)
_COUNTED_PIXELS = 1 << 22
_SLACK = 1e-3  # Less than half a step of 8 bits, as of rounded sums.


def prepare_image(image: np.ndarray, config: DataConfig) -> np.ndarray:
    """Normalises an image, resizes it to a square and evens out its contrast.

    Each where the config asks for it.

    Args:
      image: float32 [H, W, 3] in [0, 1].
      config: Of the training data.

    Returns:
      uint8 [size, size, 3] where whole images are resized, or else [H, W, 3].

    Raises:
      ImageError: If the image is another kind of array, or has values beyond.
    """
    _check_image(image)
    image_u8 = to_uint8(image)
    if config.normalization != "none":
        table = contrast_table(histogram(image_u8), config.normalization)
        image_u8 = map_values(image_u8, table)
    if config.resizes:
        image_u8 = resize(image_u8, (config.size, config.size))
    if config.clahe_clip_limit:
        image_u8 = equalize(image_u8, clip_limit=config.clahe_clip_limit)
    return image_u8


def _check_image(image: np.ndarray) -> None:
    expected = "expected floats [H, W, 3] in [0, 1], as from images.read_image"
    is_one = image.ndim == 3 and image.shape[-1] == 3 and image.size
    if not is_one or image.dtype.kind != "f":
        raise ImageError(f"the image: is {image.dtype} {image.shape}; {expected}")
    low, high = image.min(), image.max()
    # Values that are not numbers are not within either.
    if not (low > -_SLACK and high < 1 + _SLACK):
        raise ImageError(f"the image: has values from {low} to {high}; {expected}")


def histogram(image_u8: np.ndarray) -> np.ndarray:
    """Counts the values of all channels, int64 [256]; parts of an image add up."""
    counts = np.zeros(256, np.int64)
    # In parts: OpenCV counts in float32, which is exact up to 2^24.
    step = max(_COUNTED_PIXELS // image_u8.shape[1], 1)
    for top in range(0, len(image_u8), step):
        part = image_u8[top : top + step]
        for channel in range(part.shape[-1]):
            found = cv2.calcHist([part], [channel], None, [256], [0, 256])
            counts += found.ravel().astype(np.int64)
    return counts


def contrast_table(counts: np.ndarray, normalization: str) -> np.ndarray:
    """Makes the table that maps old values to new ones, for `map_values`.

    All channels share one table, so that hues stay what they are.

    Args:
      counts: Of the whole image, from `histogram`.
      normalization: "none", "stretch" (the 1st and 99.8th percentile become 0 and
        255), or "dark" (the same, and inverted where the median is nearer to the
        bright end: nuclei are then the bright ones in every kind of microscopy).

    Returns:
      uint8 [256].
    """
    values = np.arange(256)
    if normalization == "none":
        return values.astype(np.uint8)
    shares = np.cumsum(counts) / counts.sum()
    low, middle, high = np.searchsorted(shares, (0.01, 0.5, 0.998))
    stretched = np.clip((values - low) / max(high - low, 1), 0, 1)
    if normalization == "dark" and middle - low > high - middle:
        stretched = 1 - stretched
    return np.round(stretched * 255).astype(np.uint8)


def map_values(image_u8: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Replaces each value by its entry in a table, uint8 [256]."""
    return cv2.LUT(image_u8, table)


def equalize(image_u8: np.ndarray, *, clip_limit: float) -> np.ndarray:
    """Evens out the lightness by CLAHE on 8 x 8 tiles; uint8 [H, W, 3] in and out.

    Equal to albumentations' CLAHE of a fixed limit, without the half second that
    importing albumentations would cost every prediction.
    """
    lab = cv2.cvtColor(image_u8, cv2.COLOR_RGB2LAB)
    clahe = cv2.createCLAHE(clipLimit=clip_limit, tileGridSize=_CLAHE_TILES)
    lab[..., 0] = clahe.apply(lab[..., 0])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes [H, W] or [H, W, C] of uint8 or float32 to `size` = (height, width).

    Shrinking averages the area of each new pixel, growing interpolates linearly. What
    shrinks along one side and grows along the other does so one after the other: in one
    step, OpenCV would sample beside the pixels' centres.
    """
    if pixels.shape[:2] == size:
        return pixels
    smaller = min(size[0], pixels.shape[0]), min(size[1], pixels.shape[1])
    if smaller == pixels.shape[:2]:
        return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)
    shrunken = cv2.resize(pixels, smaller[::-1], interpolation=cv2.INTER_AREA)
    return resize(shrunken, size)


def resize_labels(label_image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a mask or label image [H, W] to `size`, each pixel from its nearest."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for new, old in zip(size, label_image.shape, strict=True)
    )
    return label_image[rows[:, None], columns]


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Brings float32 in [0, 1] to the nearest of 256 steps."""
    return np.round(image * np.float32(255)).astype(np.uint8)


def to_float(image_u8: np.ndarray) -> np.ndarray:
    """Brings uint8 back to float32 in [0, 1]."""
    return np.divide(image_u8, np.float32(255), dtype=np.float32)
