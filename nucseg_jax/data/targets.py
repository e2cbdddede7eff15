"""Label image -> what the network is trained to predict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def make_targets(
    label_image: np.ndarray, names: Sequence[str], *, out: np.ndarray
) -> None:
    """Makes one channel for each named target.

    Args:
      label_image: Integers [H, W], 0 = background.
      names: Of `TARGETS`; T of them.
      out: float32 [H, W, T], filled with values in [0, 1].
    """
    for k, name in enumerate(names):
        out[..., k] = TARGETS[name](label_image)


def foreground(label_image: np.ndarray) -> np.ndarray:
    """1 inside any nucleus, 0 elsewhere; bool [H, W]."""
    return label_image > 0


TARGETS = {"foreground": foreground}
