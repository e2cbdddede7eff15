"""Levels of an image: each is every second row and column of the one before.

Pixels are left out and never averaged, since a mean of two ids is the id of a third
nucleus.
"""

from __future__ import annotations

import numpy as np


def level_shapes(height: int, width: int, most: int) -> list[tuple[int, int]]:
    """Height and width of each level, the image itself first.

    Args:
      height: Of the image, pixels.
      width: Of the image, pixels.
      most: The last level is the first of which no side is longer.
    """
    shapes = [(height, width)]
    while max(height, width) > most:
        height, width = -(-height // 2), -(-width // 2)
        shapes.append((height, width))
    return shapes


def sample(rows: np.ndarray, top: int, level: int) -> np.ndarray:
    """Takes what belongs to a level from rows [h, W] of the image: a view.

    Args:
      rows: Of the whole width.
      top: Number of the first one.
      level: 0 = the image itself.
    """
    step = 2**level
    return rows[-top % step :: step, ::step]
