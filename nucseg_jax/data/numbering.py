"""Whether label images number their nuclei, or are masks by another name.

Apart from the reading of truth, because loader processes do that alone and must start
fast.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import skimage.measure

from nucseg_jax.data.index import DatasetError, Example
from nucseg_jax.data.truth import read_truth

# What is looked at: so many label images, and of each the centre, pixels.
_MOST_IMAGES = 16
_LARGEST_SIDE = 2048
_SPECK = 5  # Pixels: less than any nucleus that can be learned.


def check_numbered(examples: Sequence[Example]) -> None:
    """Refuses masks that stand where label images should.

    "Labels" is a word for binary masks, too: of a folder of such, each image would have
    one nucleus in many pieces. Of masks that were resized or smoothed, each shade of
    gray at their rims would be one. Some of the images are looked at, evenly chosen.

    Raises:
      DatasetError: If none of them has two numbers, and most have pieces apart; or if
        in most of them, most pieces have no more than a few pixels.
    """
    numbered = [example for example in examples if example.kind == "labels"]
    checked = numbered[:: max(len(numbered) // _MOST_IMAGES, 1)]
    counts = np.array([_count(read_truth(e)) for e in checked]).reshape(-1, 3)
    numbers, pieces, specks = counts.T
    if (numbers <= 1).all():
        fault = (
            "holds one number and several pieces, as other label images do: they are "
            "binary masks. Call their folder masks instead of labels, or give each "
            "nucleus a number of its own"
        )
        is_faulty = pieces > 1
    else:
        fault = (
            f"holds {_SPECK} pixels and less of most numbers, as other label images "
            "do, and as masks do that were resized, whose rims are gray: label images "
            "hold a number a nucleus, and are resized without interpolation"
        )
        is_faulty = 2 * specks > pieces
    if is_faulty.sum() > len(checked) / 2:
        first = checked[int(np.argmax(is_faulty))]
        raise DatasetError(f"{first.truth[0]}: {fault}")


def _count(label_image: np.ndarray) -> tuple[int, int, int]:
    """Counts numbers at the image's centre, their pieces, and tiny ones of these."""
    centre = label_image[tuple(_middle(length) for length in label_image.shape)]
    pieces = np.asarray(skimage.measure.label(centre, connectivity=2))
    areas = np.bincount(pieces.ravel())[1:]
    return len(np.unique(centre[centre > 0])), len(areas), int((areas <= _SPECK).sum())


def _middle(length: int) -> slice:
    first = max(length - _LARGEST_SIDE, 0) // 2
    return slice(first, first + _LARGEST_SIDE)
