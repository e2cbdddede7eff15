"""Planes as the network sees them, by values that the whole of a plane decides.

A region is never normalised by itself: which values are black and white, and how the
contrast is stretched, is found once and then holds for every region.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from nucseg_jax.data import preprocessing
from nucseg_jax.data.intensity import to_rgb
from nucseg_jax.data.planes import Plane
from nucseg_jax.inference.scaling import ReadRegion

_BAND_PIXELS = 1 << 22
_PART_PIXELS = 1 << 20


@dataclasses.dataclass(frozen=True)
class Contrast:
    """What the values of a plane become.

    Attributes:
      value_range: From `intensity_range`.
      table: From `contrast_table`, 256 values; () = they stay.
    """

    value_range: tuple[float, float] | None
    table: tuple[int, ...] = ()


def make_contrast(
    value_range: tuple[float, float] | None, counts: np.ndarray, normalization: str
) -> Contrast:
    """Makes the contrast of a plane.

    Args:
      value_range: From `intensity_range`.
      counts: From `count_values`, over the whole plane; parts of it add up.
      normalization: See `preprocessing.contrast_table`.
    """
    table = preprocessing.contrast_table(counts, normalization)
    return Contrast(value_range, tuple(table.tolist()))


def colour_reader(plane: Plane, value_range: tuple[float, float] | None) -> ReadRegion:
    """Reads regions as colours, before normalisation: uint8 [h, w, 3]."""
    channels = list(plane.segmented)

    def look(rows: slice, columns: slice) -> np.ndarray:
        pixels = plane.read(rows, columns)[..., channels]
        if pixels.dtype == np.uint8:
            # Colours already: `to_rgb` and back would change nothing.
            is_gray = len(channels) == 1
            return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB) if is_gray else pixels
        picture = np.empty((*pixels.shape[:2], 3), np.uint8)
        # In parts, because floats of three channels take twelve times the memory.
        step = max(_PART_PIXELS // pixels.shape[1], 1)
        for top in range(0, len(pixels), step):
            part = to_rgb(
                pixels[top : top + step], name=plane.name, value_range=value_range
            )
            picture[top : top + step] = preprocessing.to_uint8(part)
        return picture

    return look


def normalized_reader(look: ReadRegion, contrast: Contrast) -> ReadRegion:
    """Reads regions of a `colour_reader` as the network sees them: uint8 [h, w, 3]."""
    if not contrast.table:
        return look
    table = np.array(contrast.table, np.uint8)
    return lambda rows, columns: preprocessing.map_values(look(rows, columns), table)


def count_values(look: ReadRegion, rows: slice, columns: slice) -> np.ndarray:
    """Counts the values of a region of any size, a few rows at a time: int64 [256]."""
    counts = np.zeros(256, np.int64)
    step = max(_BAND_PIXELS // (columns.stop - columns.start), 1)
    for top in range(rows.start, rows.stop, step):
        band = slice(top, min(top + step, rows.stop))
        counts += preprocessing.histogram(look(band, columns))
    return counts
