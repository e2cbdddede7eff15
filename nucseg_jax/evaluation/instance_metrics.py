"""Instance metrics: how many nuclei are found, each as one and in its shape.

A predicted nucleus that matches a true one, as `matching` tells, is a true positive
(TP); the others are false (FP), and the true ones left over are missed (FN).

Where a ratio would be 0/0, it is 1 if there is no nucleus at all, neither true nor
predicted, and else 0. So an image without nuclei in which none was found scores 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from nucseg_jax.evaluation.matching import count_matches, match_nuclei, overlap_table

# Of the 2018 Data Science Bowl: .50:.05:.95. Written as fractions, which are the
# closest floats to their decimals, so that an IoU of 7/10 is not above .7.
THRESHOLDS = tuple(n / 20 for n in range(10, 20))
AP_NAMES = tuple(f"ap{5 * n}" for n in range(10, 20))


def average_precision(
    true_labels: np.ndarray,
    pred_labels: np.ndarray,
    thresholds: Sequence[float] | np.ndarray | float = THRESHOLDS,
) -> np.ndarray:
    """Computes the instance AP of the 2018 Data Science Bowl, TP / (TP + FP + FN).

    Args:
      true_labels: Label image, integers [H, W].
      pred_labels: Label image of the same shape.
      thresholds: The IoU above which nuclei match, in [0, 1].

    Returns:
      AP at each threshold, float64, in the shape of `thresholds`.

    Raises:
      ValueError: If shapes differ, an array is not a label image, or a threshold lies
        outside [0, 1].
    """
    table = overlap_table(true_labels, pred_labels)
    tp = count_matches(table, np.ravel(thresholds).tolist())
    num_nuclei = table.true_ids.size + table.pred_ids.size
    ap = _divide(tp, num_nuclei - tp, at_zero=True)
    return ap.reshape(np.shape(thresholds))


@dataclasses.dataclass(frozen=True)
class InstanceCounts:
    """Matches of one image, or of several; the ratios come last.

    Attributes:
      num_true: Nuclei in the truth.
      num_pred: Nuclei in the prediction.
      tp: Matches at each of `THRESHOLDS`, int64 [10].
      matched_iou: Sum of the IoU of the matches at .5.
    """

    num_true: int
    num_pred: int
    tp: np.ndarray
    matched_iou: float

    @classmethod
    def from_labels(cls, true_labels: np.ndarray, pred_labels: np.ndarray) -> Self:
        """Counts the nuclei of two label images [H, W]; see `overlap_table`."""
        table = overlap_table(true_labels, pred_labels)
        matched = match_nuclei(table, threshold=0.5)
        return cls(
            num_true=table.true_ids.size,
            num_pred=table.pred_ids.size,
            tp=count_matches(table, THRESHOLDS),
            matched_iou=float(table.iou[matched].sum()),
        )

    def merge(self, other: Self) -> Self:
        """Returns the counts of both, as for pooled metrics."""
        return type(self)(
            num_true=self.num_true + other.num_true,
            num_pred=self.num_pred + other.num_pred,
            tp=self.tp + other.tp,
            matched_iou=self.matched_iou + other.matched_iou,
        )

    @property
    def fp(self) -> np.ndarray:
        """Predicted nuclei without a match at each threshold, int64 [10]."""
        return self.num_pred - self.tp

    @property
    def fn(self) -> np.ndarray:
        """True nuclei without a match at each threshold, int64 [10]."""
        return self.num_true - self.tp

    @property
    def average_precision(self) -> np.ndarray:
        """TP / (TP + FP + FN) at each threshold, float64 [10]."""
        return self._divide(self.tp, self.tp + self.fp + self.fn)

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall at each threshold, float64 [10]."""
        return self._divide(2 * self.tp, self.num_true + self.num_pred)

    @property
    def precision(self) -> np.ndarray:
        """Share of the predicted nuclei that match, float64 [10]."""
        return self._divide(self.tp, self.num_pred)

    @property
    def recall(self) -> np.ndarray:
        """Share of the true nuclei that match, float64 [10]."""
        return self._divide(self.tp, self.num_true)

    @property
    def segmentation_quality(self) -> float:
        """Mean IoU of the matches at .5."""
        return float(self._divide(self.matched_iou, self.tp[0]))

    @property
    def panoptic_quality(self) -> float:
        """Segmentation quality times the F1 at .5 (Kirillov et al., 2019)."""
        return self.segmentation_quality * float(self.f1[0])

    @property
    def signed_count_error(self) -> int:
        """Predicted minus true number of nuclei."""
        return self.num_pred - self.num_true

    @property
    def count_error(self) -> int:
        """Absolute difference of the numbers of nuclei."""
        return abs(self.signed_count_error)

    def ratios(self) -> dict[str, float]:
        """Returns the metrics that lie in [0, 1], by name: "ap75" is AP at IoU .75."""
        ap = self.average_precision
        return {
            "mean_ap": float(ap.mean()),
            **dict(zip(AP_NAMES, ap.tolist(), strict=True)),
            "f1_50": float(self.f1[0]),
            "precision_50": float(self.precision[0]),
            "recall_50": float(self.recall[0]),
            "segmentation_quality": self.segmentation_quality,
            "panoptic_quality": self.panoptic_quality,
        }

    def _divide(self, part: Any, whole: Any) -> np.ndarray:
        return _divide(part, whole, at_zero=self.num_true + self.num_pred == 0)


def _divide(part: Any, whole: Any, *, at_zero: bool) -> np.ndarray:
    """Divides element by element; 0/0 is 1 or 0 as `at_zero` says."""
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(
        part, whole, out=np.full(whole.shape, float(at_zero)), where=whole != 0
    )
