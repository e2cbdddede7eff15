"""Probabilities -> label image: markers, watershed, clean-up.

Markers are one small region inside each nucleus; from there the watershed floods the
foreground. What the network predicts decides where nuclei part: the distance to a
nucleus's outline, its boundary and where it touches others, and for a network of
foreground alone the shape of the foreground.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
import skimage.segmentation

from nucseg_jax.config import DecodingConfig

_SHAPE_HEIGHT = 1.0  # Pixels, as the network saw them.


def label_nuclei(
    probs: np.ndarray,
    targets: Sequence[str],
    decoding: DecodingConfig,
    *,
    scale: float = 1.0,
) -> np.ndarray:
    """Numbers the nuclei.

    Args:
      probs: Probabilities of each target, float32 [H, W, T].
      targets: Their names; the first is the foreground.
      decoding: Thresholds, and sizes in pixels as the network saw them.
      scale: By which it saw the image resized.

    Returns:
      int32 [H, W], 0 = background, 1..n = nuclei. Pixels connect by their edges.
    """
    decoding = rescale(decoding, scale)
    channels = dict(zip(targets, np.moveaxis(probs, -1, 0), strict=True))
    foreground = _fill_holes(
        channels["foreground"] >= decoding.threshold, decoding.max_hole
    )
    if decoding.method == "components":
        labels = _components(foreground)
    else:
        depth, markers = _find_markers(channels, foreground, decoding, scale)
        labels = _flood(foreground, depth, markers)
    return _drop(labels, channels["foreground"], decoding)


def rescale(decoding: DecodingConfig, scale: float) -> DecodingConfig:
    """Sizes in pixels of an image that the network saw resized by `scale`."""
    return dataclasses.replace(
        decoding,
        min_area=round(decoding.min_area / scale**2),
        max_hole=round(decoding.max_hole / scale**2),
        peak_distance=max(1, round(decoding.peak_distance / scale)),
        smoothing=decoding.smoothing / scale,
    )


def _find_markers(
    channels: dict[str, np.ndarray],
    foreground: np.ndarray,
    decoding: DecodingConfig,
    scale: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns how deep inside a nucleus pixels lie, and the markers: both [H, W]."""
    if len(channels) == 1:
        depth = _shape_depth(foreground, scale)
        return depth, _find_peaks(depth, foreground, decoding, height=_SHAPE_HEIGHT)
    depth = channels.get("distance", channels["foreground"])
    for border in ("boundary", "contact"):
        if border in channels:
            depth = depth * (1 - channels[border])
    depth = cv2.GaussianBlur(depth, (0, 0), decoding.smoothing)
    inside = foreground & (depth >= decoding.marker_threshold)
    return depth, _find_peaks(depth, inside, decoding, height=decoding.peak_height)


def _shape_depth(foreground: np.ndarray, scale: float) -> np.ndarray:
    """Distance to the background, pixels as the network saw them, float32 [H, W]."""
    depth = cv2.distanceTransform(foreground.astype(np.uint8), cv2.DIST_L2, 5)
    # Smoothed, so that a ragged outline does not raise several peaks. Where there is
    # no background at all, OpenCV says infinity.
    depth = cv2.GaussianBlur(np.minimum(depth, max(depth.shape)), (0, 0), 1 / scale)
    return depth * np.float32(scale)


def _find_peaks(
    depth: np.ndarray, inside: np.ndarray, decoding: DecodingConfig, *, height: float
) -> np.ndarray:
    """Numbers patches that lie hardly lower than the highest point nearby.

    The flat ridge of a long nucleus is one patch. Two peaks are two where the depth
    falls by `height` between them, within `peak_distance` of each: gentler slopes are
    one.
    """
    side = 2 * decoding.peak_distance + 1
    highest = cv2.dilate(depth, np.ones((side, side), np.uint8))
    return _components(inside & (depth >= highest - height))


def _flood(
    foreground: np.ndarray, depth: np.ndarray, markers: np.ndarray
) -> np.ndarray:
    """Parts the foreground between markers; a part without one is a nucleus too.

    Where a connected part has a single marker, all of it is that marker's: only what
    several share is flooded, which takes much longer.
    """
    components, inside = _components(foreground), markers > 0
    num_markers = int(markers.max(initial=0))
    homes = np.zeros(num_markers + 1, np.intp)  # The component of each marker.
    homes[markers[inside]] = components[inside]
    ids = np.arange(int(components.max(initial=0)) + 1, dtype=np.int32) + num_markers
    ids[homes] = np.arange(num_markers + 1)
    labels = ids[components]
    shared = (np.bincount(homes, minlength=len(ids)) > 1)[components]
    if shared.any():
        flooded = skimage.segmentation.watershed(-depth, markers, mask=shared)
        labels[shared] = flooded[shared]
    return labels


def _fill_holes(foreground: np.ndarray, max_hole: int) -> np.ndarray:
    """Fills holes of up to `max_hole` pixels; what is open to the edge is no hole."""
    if not max_hole:
        return foreground
    # By corners, too: or a gap one pixel wide between two nuclei would be holes.
    background = _components(~foreground, connectivity=8)
    areas = np.bincount(background.ravel())
    areas[0] = max_hole + 1
    for edge in (background[0], background[-1], background[:, 0], background[:, -1]):
        areas[edge] = max_hole + 1
    return foreground | (areas <= max_hole)[background]


def _drop(
    labels: np.ndarray, probs: np.ndarray, decoding: DecodingConfig
) -> np.ndarray:
    """Drops small and doubtful labels and renumbers the others in their order."""
    areas = np.bincount(labels.ravel())
    kept = areas >= max(decoding.min_area, 1)
    if decoding.min_probability:
        sums = np.bincount(labels.ravel(), weights=probs.ravel())
        kept &= sums >= decoding.min_probability * areas
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[labels]


def _components(mask: np.ndarray, *, connectivity: int = 4) -> np.ndarray:
    """Numbers connected parts, int32 [H, W]; the order is from top to bottom."""
    _, labels = cv2.connectedComponents(
        mask.astype(np.uint8), connectivity=connectivity
    )
    return labels
