"""Label images to compare: drawn by hypothesis, or discs of any number."""

import hypothesis.extra.numpy
import numpy as np
from hypothesis import strategies as st

SHAPE = (5, 7)


def label_arrays(max_id=4):
    """Small label images of any content."""
    ids = st.integers(0, max_id)
    return hypothesis.extra.numpy.arrays(np.int32, SHAPE, elements=ids)


@st.composite
def label_pairs(draw):
    """Two label images, alike in about half of their pixels."""
    true_labels, other = draw(label_arrays()), draw(label_arrays())
    kept = draw(hypothesis.extra.numpy.arrays(bool, SHAPE))
    return true_labels, np.where(kept, true_labels, other)


def renumber(label_image, seed, max_id=2**31 - 1):
    """Gives every nucleus another id, in another order and with gaps."""
    ids, index = np.unique(label_image, return_inverse=True)
    new = np.random.default_rng(seed).choice(max_id, ids.size, replace=False) + 1
    return np.where(ids == 0, 0, new)[index].reshape(label_image.shape)


def disc_grid(side, spacing, *, shift=(0, 0), radius=None):
    """Discs on a square grid, int32 [side, side], numbered by row."""
    radius = spacing / 2 - 1 if radius is None else radius
    y, x = (np.arange(side) - offset for offset in shift)
    row, column = y // spacing, x // spacing
    dy, dx = y % spacing - spacing / 2, x % spacing - spacing / 2
    inside = dy[:, None] ** 2 + dx[None, :] ** 2 <= radius**2
    labels = row[:, None] * (side // spacing + 1) + column[None, :] + 1
    return np.where(inside & (labels > 0), labels, 0).astype(np.int32)
