"""Probabilities -> label image."""

from __future__ import annotations

import numpy as np
import skimage.measure


def label_nuclei(probs: np.ndarray, *, threshold: float = 0.5) -> np.ndarray:
    """Numbers the connected parts of the foreground.

    Args:
      probs: Foreground probabilities, float32 [H, W].
      threshold: Least probability of the foreground.

    Returns:
      int32 [H, W], 0 = background, 1..n = nuclei. Pixels connect by their edges.
    """
    labels = skimage.measure.label(probs >= threshold, connectivity=1)
    return np.asarray(labels, np.int32)
