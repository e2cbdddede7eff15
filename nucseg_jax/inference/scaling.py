"""Images seen at another magnification, region by region, and results brought back.

Pixel centres lie at half numbers: pixel x of the scaled image looks at (x + 0.5) /
scale - 0.5 of the image. A region gives the same pixels as the whole would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import cv2
import numpy as np

from nucseg_jax.inference.streams import BAND_ROWS

ReadRegion = Callable[[slice, slice], np.ndarray]

_SMALLEST, _LARGEST = 0.01, 100.0


def check_scale(scale: float) -> None:
    """Refuses scales by which nothing could be seen.

    Raises:
      ValueError: If it does not lie between 0.01 and 100.
    """
    if not _SMALLEST <= scale <= _LARGEST:
        raise ValueError(
            f"scale is {scale:g}; it must lie between {_SMALLEST:g} and {_LARGEST:g}"
        )


def scaled_shape(shape: tuple[int, int], scale: float) -> tuple[int, int]:
    """Height and width after scaling, at least 1."""
    height, width = (max(1, round(n * scale)) for n in shape)
    return height, width


def scaled_reader(read: ReadRegion, shape: tuple[int, int], scale: float) -> ReadRegion:
    """Makes a reader of regions of the scaled image out of one of the image.

    Shrinking blurs first, so that fine grain does not turn into false patterns.

    Args:
      read: Rows and columns to uint8 [h, w, 3].
      shape: Height and width of the image.
      scale: Pixels of the scaled image a pixel of the image.
    """
    sigma = max(0.0, 0.5 * (1 / scale - 1))
    margin = math.ceil(4 * sigma) + 2

    def read_scaled(rows: slice, columns: slice) -> np.ndarray:
        size = (rows.stop - rows.start, columns.stop - columns.start)
        source = [
            _source(part, scale, margin, length)
            for part, length in zip((rows, columns), shape, strict=True)
        ]
        pixels = read(*source)
        if sigma:
            pixels = cv2.GaussianBlur(pixels, (0, 0), sigma, borderType=_BORDER)
        starts = (rows.start, columns.start)
        return _resample(pixels, size, scale, starts, [s.start for s in source])

    return read_scaled


def restore_rows(
    bands: Iterable[np.ndarray],
    scaled: tuple[int, int],
    shape: tuple[int, int],
    scale: float,
) -> Iterator[np.ndarray]:
    """Brings rows of a scaled result back to the image's own pixels.

    Args:
      bands: float32 [rows, scaled width, T], from top to bottom.
      scaled: Height and width of the scaled result.
      shape: Height and width of the image.
      scale: As above.

    Yields:
      float32 [rows, width, T], from top to bottom.
    """
    height, width = shape
    kept, first, done, seen = None, 0, 0, 0
    for band in _cut(bands):
        kept = band if kept is None else np.concatenate([kept, band])
        seen += len(band)
        is_last = seen == scaled[0]
        # Rows whose lower neighbour in the scaled result is there.
        ready = height if is_last else int((seen - 1) / scale - 0.5)
        if ready <= done:
            continue
        yield _resample(kept, (ready - done, width), 1 / scale, (done, 0), (first, 0))
        done = ready
        needed = max(0, math.floor((done + 0.5) * scale - 0.5) - 1)
        kept, first = kept[needed - first :], needed


def _cut(bands: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Gives a few rows at a time, so that few restored ones are in memory."""
    for band in bands:
        for top in range(0, len(band), BAND_ROWS):
            # A copy: the whole must not stay while the next one is made.
            yield band[top : top + BAND_ROWS].copy()
        del band


def restore_region(
    probs: np.ndarray,
    starts: tuple[int, int],
    rows: slice,
    columns: slice,
    scale: float,
) -> np.ndarray:
    """Brings a part of a scaled result back to a region of the image.

    Args:
      probs: float32 [h, w, T], what the region depends on.
      starts: First row and column of `probs` in the scaled result.
      rows: Of the image.
      columns: Of the image.
      scale: As above.

    Returns:
      float32 [rows, columns, T].
    """
    top, left = starts
    if scale == 1:
        return probs[
            rows.start - top : rows.stop - top,
            columns.start - left : columns.stop - left,
        ]
    size = (rows.stop - rows.start, columns.stop - columns.start)
    return _resample(probs, size, 1 / scale, (rows.start, columns.start), starts)


_BORDER = cv2.BORDER_REFLECT


def _source(part: slice, scale: float, margin: int, length: int) -> slice:
    """The pixels of the image that a part of the scaled image depends on."""
    start = math.floor((part.start + 0.5) / scale - 0.5) - margin
    stop = math.ceil((part.stop - 0.5) / scale - 0.5) + margin + 1
    return slice(max(0, min(start, length - 1)), max(1, min(stop, length)))


def _resample(
    pixels: np.ndarray,
    size: tuple[int, int],
    scale: float,
    starts: tuple[int, int],
    source_starts: Sequence[int],
) -> np.ndarray:
    """Interpolates `size` pixels from `starts` on, given the image from others on."""
    if pixels.shape[-1] == 2:
        # OpenCV refuses rows of 32,767 pixels and more of two channels, but not of one.
        parts = (
            _resample(channel[..., None], size, scale, starts, source_starts)
            for channel in cv2.split(pixels)
        )
        return np.concatenate(list(parts), axis=-1)
    offsets = [
        (start + 0.5) / scale - 0.5 - source
        for start, source in zip(starts, source_starts, strict=True)
    ]
    matrix = np.array([[1 / scale, 0, offsets[1]], [0, 1 / scale, offsets[0]]])
    result = cv2.warpAffine(
        pixels,
        matrix,
        size[::-1],
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    # OpenCV drops a last axis of length one.
    return result.reshape(*size, pixels.shape[-1])
