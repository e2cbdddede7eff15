"""Label image -> what the network is trained to predict."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from nucseg_jax.config import BINARY_TARGETS

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
_DISC = (np.hypot(*np.mgrid[-2:3, -2:3]) <= 2).astype(np.uint8)
# Where all of an image is one nucleus, OpenCV measures from nowhere and says infinity.
_LARGEST_DEPTH = 1e4


def make_targets(
    label_image: np.ndarray, names: Sequence[str], *, out: np.ndarray
) -> None:
    """Makes one channel for each named target.

    Args:
      label_image: Integers [H, W], 0 = background.
      names: Of `TARGETS`; T of them.
      out: [H, W, T] of `choose_dtype(names)` or float32, filled with values in [0, 1].
    """
    for k, name in enumerate(names):
        out[..., k] = TARGETS[name](label_image)


def choose_dtype(names: Sequence[str]) -> np.dtype:
    """Chooses the smallest dtype that holds all named targets: bool or float32."""
    return np.dtype(bool if set(names) <= set(BINARY_TARGETS) else np.float32)


def foreground(label_image: np.ndarray) -> np.ndarray:
    """1 inside any nucleus, 0 elsewhere; bool [H, W]."""
    return label_image > 0


def boundary(label_image: np.ndarray) -> np.ndarray:
    """1 on both sides of every nucleus's outline, two pixels wide; bool [H, W].

    Between touching nuclei it is what parts them.
    """
    labels = _cv_labels(label_image)
    return cv2.dilate(labels, _CROSS) != cv2.erode(labels, _CROSS)


def distance(label_image: np.ndarray) -> np.ndarray:
    """Distance to the nucleus's outline, 1 at its innermost pixel; float32 [H, W].

    Relative to each nucleus, so that one threshold marks large and small ones alike.
    A nucleus that the image cuts off has no outline at the image's edge.
    """
    labels = _cv_labels(label_image)
    # Pixels next to another label are the outline: one pixel away from the outside.
    inner = (labels > 0) & (cv2.erode(labels, _CROSS) == cv2.dilate(labels, _CROSS))
    outside = cv2.distanceTransform(inner.astype(np.uint8), cv2.DIST_L2, 5)
    depth = np.where(labels > 0, np.minimum(outside, _LARGEST_DEPTH) + 1, 0)
    deepest = np.ones(int(labels.max(initial=0)) + 1, np.float32)
    np.maximum.at(deepest, labels, depth.astype(np.float32))
    return (depth / deepest[labels]).astype(np.float32)


def contact(label_image: np.ndarray) -> np.ndarray:
    """1 within two pixels of two nuclei, where they touch or nearly do; bool [H, W].

    A channel of its own, because of all outlines this is the least part, and the only
    one that the foreground does not show.
    """
    labels = _cv_labels(label_image)
    largest = cv2.dilate(labels, _DISC)
    # The least label nearby, background apart, is the largest of the labels reversed.
    reversed_labels = np.where(labels > 0, np.iinfo(np.uint16).max - labels + 1, 0)
    least = np.iinfo(np.uint16).max - cv2.dilate(reversed_labels, _DISC) + 1
    return (largest > 0) & (largest != least)


def _cv_labels(label_image: np.ndarray) -> np.ndarray:
    """Labels as uint16, the widest integers whose neighbours OpenCV compares."""
    if label_image.max(initial=0) > np.iinfo(np.uint16).max:
        raise ValueError("more than 65,535 nuclei in one image; cut it in parts")
    return label_image.astype(np.uint16)


TARGETS = {
    "foreground": foreground,
    "boundary": boundary,
    "distance": distance,
    "contact": contact,
}
