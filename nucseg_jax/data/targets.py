"""Label image -> what the network is trained to predict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def make_targets(label_image: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Makes one channel for each named target.

    Args:
      label_image: Integers [H, W], 0 = background.
      names: Of `TARGETS`.

    Returns:
      float32 [H, W, T] in [0, 1].
    """
    return np.stack([TARGETS[name](label_image) for name in names], axis=-1)


def foreground(label_image: np.ndarray) -> np.ndarray:
    """1 inside any nucleus, 0 elsewhere; float32 [H, W]."""
    return (label_image > 0).astype(np.float32)


TARGETS = {"foreground": foreground}
