"""Label image -> one row a nucleus."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nucseg_jax.data.planes import check_pixel_size
from nucseg_jax.inference import shapes

PIXELS, MICROMETRES = "px", "um"


def measure_nuclei(
    label_image: np.ndarray,
    probs: np.ndarray,
    pixels: np.ndarray | None = None,
    *,
    channels: Sequence[str] = (),
    top: int = 0,
    left: int = 0,
    image_shape: tuple[int, int] | None = None,
    pixel_size: float | None = None,
) -> dict[str, np.ndarray]:
    """Measures each nucleus of an image or of a window of it.

    All columns equal those of `skimage.measure.regionprops`; only where the image
    begins and ends, and lengths in micrometres, are ours.

    Args:
      label_image: Integers [H, W]; 0 and below = background.
      probs: Probabilities, float32 [H, W] or [H, W, T], the first being foreground.
      pixels: Raw values to average, [H, W] or [H, W, C], of any dtype.
      channels: Names of the C channels; () = "0", "1" and so on.
      top: Row of the window in the image.
      left: Column of the window in the image.
      image_shape: Height and width of the image; None = those of the window.
      pixel_size: Micrometres a pixel; None = unknown, lengths are in pixels.

    Returns:
      Columns of n values, in ascending order of "id", which is int32: "y" and "x"
      (centroid, pixels of the whole image), "unit" ("px" or "um"), "area" (int64
      pixels, or float64 square micrometres), "perimeter", "eccentricity" (0 = round),
      "solidity" (area / area of the convex hull), "orientation" (degrees, -90 to 90,
      from upright, counter-clockwise), "intensity_mean_<channel>" for each channel,
      "probability" (mean of the foreground's), "touches_border" (bool: has a pixel on
      the edge of the whole image).

    Raises:
      ValueError: If shapes do not fit, labels are no integers, or the pixel size is
        out of range.
    """
    check_pixel_size(pixel_size)
    if label_image.dtype.kind not in "iu":
        raise ValueError(f"labels are {label_image.dtype}; expected integers")
    planes = _split_channels(pixels, channels)
    foreground = probs[..., 0] if probs.ndim == 3 else probs
    for name, plane in {"probs": foreground, **planes}.items():
        if plane.shape != label_image.shape:
            raise ValueError(
                f"{name} are {plane.shape} (height, width), but the label image is "
                f"{label_image.shape}"
            )
    runs = shapes.find_runs(label_image)
    moments = shapes.compute_moments(runs)
    scale = pixel_size or 1.0
    area = moments.area.astype(np.int64)
    perimeter = shapes.compute_perimeters(label_image, runs.ids)
    return {
        "id": runs.ids.astype(np.int32),
        "y": moments.y + top,
        "x": moments.x + left,
        "unit": np.full(len(runs.ids), MICROMETRES if pixel_size else PIXELS),
        "area": area * scale**2 if pixel_size else area,
        "perimeter": perimeter * scale,
        "eccentricity": moments.eccentricity(),
        "solidity": area / shapes.compute_convex_areas(runs),
        "orientation": moments.orientation(),
        **{
            f"intensity_mean_{name}": runs.total_of_pixels(plane) / area
            for name, plane in planes.items()
        },
        "probability": runs.total_of_pixels(foreground) / area,
        "touches_border": _touches_border(
            runs, top, left, image_shape or label_image.shape
        ),
    }


def _split_channels(
    pixels: np.ndarray | None, channels: Sequence[str]
) -> dict[str, np.ndarray]:
    """Names the planes [H, W] of the raw values."""
    if pixels is None:
        return {}
    stack = pixels[..., None] if pixels.ndim == 2 else pixels
    names = channels or [str(c) for c in range(stack.shape[-1])]
    if len(names) != stack.shape[-1]:
        raise ValueError(f"{len(names)} channel names for {stack.shape[-1]} channels")
    return {name: stack[..., c] for c, name in enumerate(names)}


def _touches_border(
    runs: shapes.Runs, top: int, left: int, image_shape: tuple[int, ...]
) -> np.ndarray:
    """Tells which nuclei have a pixel on the edge of the image; bool [n]."""
    row, first, last = runs.row + top, runs.first + left, runs.last + left
    height, width = image_shape
    outermost = (row == 0) | (row == height - 1) | (first == 0) | (last == width - 1)
    return runs.total(outermost) > 0
