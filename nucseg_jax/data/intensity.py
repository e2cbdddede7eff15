"""Brings values of any type to RGB in [0, 1], by one range for the whole image."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nucseg_jax.data.errors import ImageError
from nucseg_jax.data.planes import Plane

_PERCENTILES = (0.1, 99.9)
# Of [0, 1]: less has too few of the 256 steps that all is rounded to. 12 bits divided
# by 65,535 have 16.
_LITTLE = 1 / 8
_ROUNDING = 0.01  # Of a step, as float16 does.
_EXACT_VALUES = 1 << 24
_BAND_VALUES = 1 << 22  # 32 MiB as float64.


def to_rgb(
    pixels: np.ndarray,
    *,
    name: str = "the image",
    value_range: tuple[float, float] | None = None,
) -> np.ndarray:
    """Brings pixels of any dtype to RGB in [0, 1].

    Gray becomes three equal channels; transparency is dropped. 8-bit values are
    divided by 255, and floats within [0, 1] taken as they are, unless they use less
    than an eighth of it in finer steps. Wider integers and other floats are stretched
    between the 0.1th and 99.9th percentile of the whole image, because cameras fill an
    unknown part of their range.

    Args:
      pixels: [H, W] or [H, W, 1 to 4] of any real dtype.
      name: What to call the image in an error.
      value_range: Values that become 0 and 1, as `intensity_range` gives them, if
        these pixels are a part of an image; None = these pixels are the image.

    Returns:
      float32 [H, W, 3] in [0, 1].

    Raises:
      ImageError: If the shape is another.
    """
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 2, 3, 4) or 0 in pixels.shape:
        raise ImageError(f"{name}: is {pixels.shape}; expected [H, W] or [H, W, 1-4]")
    unit = _to_unit_range(_drop_alpha(pixels), value_range)
    return np.ascontiguousarray(np.broadcast_to(unit, (*unit.shape[:2], 3)))


def intensity_range(plane: Plane) -> tuple[float, float] | None:
    """Finds the values that become black and white, over a plane of any size.

    These are the 0.1th and 99.9th percentile of the segmented channels together, or 0
    and 1 for floats that `to_rgb` takes as they are. The plane is read band by band.
    Percentiles are exact up to 2^24 finite values; of more, those of every n-th pixel
    are taken, evenly over the plane.

    Args:
      plane: To be read once, as a whole.

    Returns:
      What `to_rgb` takes; None for 8 bits and 1 bit, which need no range.

    Raises:
      ImageError: If the plane cannot be read.
    """
    if _is_absolute(plane.dtype):
        return None
    num_values = plane.shape[0] * plane.shape[1] * len(plane.segmented)
    stride = -(-num_values // _EXACT_VALUES)
    sampled, ends, num_seen = [], [], 0
    for pixels in _read_bands(plane):
        ends.extend(_ends(_finite(pixels.ravel())))
        # All channels of a pixel: every n-th value may be of the same channel. A copy,
        # or every band would stay in memory.
        chosen = pixels[-num_seen % stride :: stride].ravel()
        sampled.append(_finite(chosen).copy())
        num_seen += len(pixels)
    return _find_range(np.concatenate(sampled), ends)


def _read_bands(plane: Plane) -> Iterator[np.ndarray]:
    """Reads the segmented channels from top to bottom, [pixels, channels].

    Some million values at a time.
    """
    height, width, num_channels = plane.shape
    step = max(_BAND_VALUES // (width * num_channels), 1)
    for top in range(0, height, step):
        band = plane.read(slice(top, min(top + step, height)))
        yield band[..., list(plane.segmented)].reshape(-1, len(plane.segmented))


def _drop_alpha(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., : {2: 1, 4: 3}.get(pixels.shape[-1], pixels.shape[-1])]


def _is_absolute(dtype: np.dtype) -> bool:
    """Whether black and white are the same values in every image of this type."""
    return dtype in (np.dtype(bool), np.dtype(np.uint8))


def _to_unit_range(
    pixels: np.ndarray, value_range: tuple[float, float] | None
) -> np.ndarray:
    """Scales pixels of any dtype to float32 in [0, 1]."""
    if value_range is None and _is_absolute(pixels.dtype):
        white = np.float32(1 if pixels.dtype == bool else 255)
        return pixels.astype(np.float32) / white
    if value_range is None:
        values = _finite(pixels.ravel())
        value_range = _find_range(values, _ends(values))
    low, high = value_range
    scale = high - low if high > low else 1.0
    # Values may lie far beyond the range, and some NaN warn when they are cast.
    with np.errstate(over="ignore", invalid="ignore"):
        known = pixels.astype(np.float64)
        known = np.nan_to_num(known, copy=False, nan=low, posinf=high, neginf=low)
        return np.clip((known - low) / scale, 0.0, 1.0).astype(np.float32)


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)] if values.dtype.kind == "f" else values


def _ends(values: np.ndarray) -> list[float]:
    """Least and greatest value; nothing of no values."""
    return [float(values.min()), float(values.max())] if values.size else []


def _find_range(values: np.ndarray, ends: list[float]) -> tuple[float, float]:
    """The values that become 0 and 1.

    Args:
      values: Finite values, or an even sample of them, [n].
      ends: Among them the least and the greatest of all finite values.
    """
    if not values.size:
        return 0.0, 0.0  # Nothing is known; everything becomes black.
    low, high = map(float, np.percentile(_without_overflow(values), _PERCENTILES))
    is_unit = values.dtype.kind == "f" and min(ends) >= 0 and max(ends) <= 1
    if is_unit and not (0 < high - low < _LITTLE and not _are_256_steps(values)):
        return 0.0, 1.0
    return low, high


def _are_256_steps(values: np.ndarray) -> bool:
    """Whether values in [0, 1] are 8 bits divided by 255, but for rounding."""
    steps = values.astype(np.float32) * np.float32(255)
    return bool(np.abs(steps - np.round(steps)).max() < _ROUNDING)


def _without_overflow(values: np.ndarray) -> np.ndarray:
    """Makes room for differences of values, which percentiles are computed from."""
    if values.dtype.kind in "bi" or values.dtype.itemsize > 8:
        values = values.astype(np.float64)
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    if values.dtype.kind == "f":
        largest = np.finfo(values.dtype).max / 4
        values = values.clip(-largest, largest)
    return values
