"""Fluorescence saved in a colour, as DAPI in blue, seen in gray.

To networks that have learned gray fluorescence, nuclei in blue are nearly black. What
one hue on black shows, its strongest channel shows alone.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from nucseg_jax.data.planes import Plane

_LOW, _HIGH = 0.001, 0.999
# What other channels may show besides, of the strongest one's range. The fringes that
# JPEG draws around nuclei in blue have up to .08 at quality 75.
_LEFT_OUT = 0.1
# How bright the darkest pixels may be, of the brightest. Without light, cameras and
# autofluorescence leave up to .12 in the 2018 Data Science Bowl's fluorescence; the
# darkest of its stained tissue has .24.
_BLACK = 0.15
_ROWS, _COLUMNS = 64, 256  # That are looked at.
_MOST_AT_ONCE = 1 << 22
_LARGEST = 1e150


def in_gray(plane: Plane) -> Plane:
    """Leaves the strongest channel of a plane whose colours are one hue on black.

    That is so where the other channels follow it: what they show besides, and the
    darkest pixels of all three, are small beside its range, and most of it is dark.
    Gray in three equal channels is of one hue, too. Channels that were asked for stay,
    and so do two stains, and stained tissue. What was judged is not judged again.

    Args:
      plane: Judged by some 2^14 of its pixels, of 64 rows evenly over it.

    Raises:
      ImageError: If the plane cannot be read.
    """
    if not plane.may_be_one_hue:
        return plane
    chosen, strongest = plane.segmented, _strongest_channel(_sample(plane))
    if strongest is not None:
        chosen = (chosen[strongest],)
    return dataclasses.replace(plane, segmented=chosen, may_be_one_hue=False)


def _strongest_channel(colours: np.ndarray) -> int | None:
    """Finds the channel that shows all there is, if there is one, of [3, n] float64."""
    if not colours.size:
        return None
    low, middle, high = _quantiles(colours, (_LOW, 0.5, _HIGH))
    strongest = int(np.argmax(high - low))
    span = high[strongest] - low[strongest]
    is_mostly_dark = middle[strongest] < (low + high)[strongest] / 2
    if not is_mostly_dark or low.max() > _BLACK * high[strongest]:
        return None
    apart = colours - colours.mean(axis=1, keepdims=True)
    lead = apart[strongest]
    if not lead @ lead:
        return None  # Values so small that their squares vanish.
    slopes = apart @ lead / (lead @ lead)
    besides = np.abs(apart - slopes[:, None] * lead)
    (most,) = _quantiles(besides, (_HIGH,))
    return strongest if most.max() <= _LEFT_OUT * span else None


def _quantiles(values: np.ndarray, shares: tuple[float, ...]) -> list[np.ndarray]:
    """Values [k] of each row of [k, n], below which a share of it lies.

    A fifth of the time of NumPy's, since the values need not lie between two.
    """
    ordered = np.sort(values, axis=1)
    return [ordered[:, round(share * (values.shape[1] - 1))] for share in shares]


def _sample(plane: Plane) -> np.ndarray:
    """Reads colours of some rows, evenly over a plane: float64 [3, n]."""
    height, width, _ = plane.shape
    rows = np.linspace(0, height - 1, min(height, _ROWS)).astype(int)
    step = -(-width // _COLUMNS)
    if height * width <= _MOST_AT_ONCE:
        found = plane.read()[rows, ::step]
    else:
        found = np.concatenate([plane.read(slice(r, r + 1))[:, ::step] for r in rows])
    colours = found.reshape(-1, found.shape[-1])[:, plane.segmented].astype(np.float64)
    # Far from the ends of what float64 holds, so that squares are finite.
    known = colours[(np.abs(colours) < _LARGEST).all(axis=-1)]
    return np.ascontiguousarray(known.T)
