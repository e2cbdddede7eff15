"""Which nuclei of one label image are found in another.

A label image is an array [H, W] of integers: 0 is background, every other value one
nucleus. Ids may have gaps and need no order; nothing here depends on them.

A true and a predicted nucleus match when their intersection over union (IoU) lies
strictly above the threshold, one to one. From .5 on no nucleus can have two such
partners, as more than half of it would have to lie in each; below .5 the assignment
with the most matches is taken, and of those the one with the highest sum of IoU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

_MAX_ID = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class OverlapTable:
    """The nuclei of two label images and where they overlap: N true, M predicted.

    Attributes:
      true_ids: [N], ascending.
      pred_ids: [M], ascending.
      true_areas: int64 [N], pixels.
      pred_areas: int64 [M], pixels.
      rows: [K], index among the true nuclei of each overlapping pair.
      columns: [K], index among the predicted ones.
      intersections: int64 [K], pixels.
    """

    true_ids: np.ndarray
    pred_ids: np.ndarray
    true_areas: np.ndarray
    pred_areas: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    intersections: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union of each overlapping pair, float64 [K]."""
        areas = self.true_areas[self.rows] + self.pred_areas[self.columns]
        return self.intersections / (areas - self.intersections)


def overlap_table(true_labels: np.ndarray, pred_labels: np.ndarray) -> OverlapTable:
    """Counts the pixels that each true nucleus shares with each predicted one.

    Args:
      true_labels: Label image, any integers from 0 to 2**32 - 1, [H, W].
      pred_labels: Label image of the same shape.

    Raises:
      ValueError: If shapes differ, or an array is not a label image.
    """
    if np.shape(true_labels) != np.shape(pred_labels):
        raise ValueError(
            f"label images differ in shape: {np.shape(true_labels)} true, "
            f"{np.shape(pred_labels)} predicted"
        )
    true_flat, pred_flat = _flatten(true_labels), _flatten(pred_labels)
    # Runs of equal pixels: some ten times fewer than pixels, so sorting them is fast.
    starts, lengths = _find_runs(true_flat, pred_flat)
    keys = true_flat[starts].astype(np.uint64) << np.uint64(32)
    keys |= pred_flat[starts].astype(np.uint64)
    pairs, areas = _sum_by_value(keys, lengths)
    true_of_pair, pred_of_pair = pairs >> np.uint64(32), pairs & np.uint64(_MAX_ID)
    true_ids, true_areas = _drop_background(*_sum_by_value(true_of_pair, areas))
    pred_ids, pred_areas = _drop_background(*_sum_by_value(pred_of_pair, areas))
    shared = (true_of_pair > 0) & (pred_of_pair > 0)
    return OverlapTable(
        true_ids=true_ids,
        pred_ids=pred_ids,
        true_areas=true_areas,
        pred_areas=pred_areas,
        rows=np.searchsorted(true_ids, true_of_pair[shared]),
        columns=np.searchsorted(pred_ids, pred_of_pair[shared]),
        intersections=areas[shared],
    )


def match_nuclei(table: OverlapTable, *, threshold: float = 0.5) -> np.ndarray:
    """Matches true and predicted nuclei one to one.

    Args:
      table: Of a true and a predicted label image.
      threshold: In [0, 1]; the IoU of a match lies above it.

    Returns:
      Indices of the matched pairs within `table.rows` and `table.columns`, [m].

    Raises:
      ValueError: If the threshold lies outside [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"IoU threshold is {threshold}; it must lie in [0, 1]")
    pairs = np.flatnonzero(table.iou > threshold)
    rows, columns = table.rows[pairs], table.columns[pairs]
    # Only pairs that share a nucleus with another pair need to be assigned.
    contested = (np.bincount(rows)[rows] > 1) | (np.bincount(columns)[columns] > 1)
    if not contested.any():
        return pairs
    return np.sort(
        np.concatenate([pairs[~contested], _assign(table, pairs[contested])])
    )


def count_matches(table: OverlapTable, thresholds: Sequence[float]) -> np.ndarray:
    """Counts the matches at each IoU threshold, int64 [T]."""
    matches = [match_nuclei(table, threshold=threshold) for threshold in thresholds]
    return np.array([pairs.size for pairs in matches], np.int64)


def _flatten(label_image: np.ndarray) -> np.ndarray:
    """Checks a label image and lays its pixels in a row."""
    labels = np.asarray(label_image)
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"expected integers [H, W] as label image, not {labels.dtype} of shape "
            f"{labels.shape}"
        )
    if labels.size and (labels.min() < 0 or labels.max() > _MAX_ID):
        raise ValueError(
            f"a label image holds ids from {labels.min()} to {labels.max()}; they must "
            f"lie between 0 and {_MAX_ID}"
        )
    return labels.ravel()


def _find_runs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns starts and lengths of the runs in which neither array changes."""
    begins = np.ones(first.size, bool)
    begins[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    starts = np.flatnonzero(begins)
    return starts, np.diff(starts, append=first.size)


def _sum_by_value(
    values: np.ndarray, amounts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct values, ascending, and the sum of each one's amounts."""
    distinct, index = np.unique(values, return_inverse=True)
    # Sums in float64 are exact up to 2**53 pixels.
    sums = np.bincount(index, weights=amounts, minlength=distinct.size)
    return distinct, sums.astype(np.int64)


def _drop_background(
    ids: np.ndarray, areas: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return ids[ids > 0], areas[ids > 0]


def _assign(table: OverlapTable, pairs: np.ndarray) -> np.ndarray:
    """Chooses pairs that share no nucleus: most of them, then of highest IoU."""
    _, rows = np.unique(table.rows[pairs], return_inverse=True)
    _, columns = np.unique(table.columns[pairs], return_inverse=True)
    num_rows, num_columns = rows.max() + 1, columns.max() + 1
    # All IoUs together weigh less than one match.
    gain = 1 + table.iou[pairs] / (min(num_rows, num_columns) + 1)
    # Sparse, for a matrix of all nuclei would not fit into memory. Each row may also
    # take a column of its own, which is no match; weights of 0 would not be there.
    nobody = np.arange(num_rows)
    values = np.concatenate([1 + gain, np.ones(num_rows)])
    places = np.append(rows, nobody), np.append(columns, num_columns + nobody)
    weights = scipy.sparse.coo_array((values, places)).tocsr()
    match = scipy.sparse.csgraph.min_weight_full_bipartite_matching
    _, partners = match(weights, maximize=True)
    return pairs[partners[rows] == columns]
