"""The metrics of an epoch, summed up batch by batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from nucseg_jax.evaluation.pixel_metrics import PixelCounts, ScoreHistogram
from nucseg_jax.training.step import StepMetrics


@dataclasses.dataclass
class EpochMetrics:
    """Sums over the batches of an epoch.

    Attributes:
      loss: Sum of the batches' losses.
      num_batches: Batches summed.
      num_skipped: Batches whose loss or gradients were not finite; not summed.
      counts: Pixels of the foreground.
      histogram: Of its probabilities.
    """

    loss: float = 0.0
    num_batches: int = 0
    num_skipped: int = 0
    counts: PixelCounts | None = None
    histogram: ScoreHistogram | None = None

    @property
    def num_steps(self) -> int:
        """Batches seen."""
        return self.num_batches + self.num_skipped

    def add(self, metrics: StepMetrics) -> None:
        """Adds one batch; waits until the device has computed it."""
        if not metrics.finite:
            self.num_skipped += 1
            return
        counts, histogram = metrics.counts.to_host(), metrics.histogram.to_host()
        self.loss += float(metrics.loss)
        self.num_batches += 1
        self.counts = counts if self.counts is None else self.counts.merge(counts)
        self.histogram = (
            histogram if self.histogram is None else self.histogram.merge(histogram)
        )

    def summarize(self) -> dict[str, float]:
        """Returns loss (mean over batches), pixel accuracy, IoU, F1 and AUC."""
        if self.counts is None or self.histogram is None:
            raise ValueError("there was no batch to measure")
        return {
            "loss": self.loss / self.num_batches,
            "accuracy": self.counts.accuracy,
            "iou": self.counts.iou,
            "f1": self.counts.f1,
            "auc": self.histogram.auc,
        }

    def to_dict(self) -> dict[str, Any]:
        """Returns the sums for JSON, from which `from_dict` makes exactly them."""
        values: dict[str, Any] = {
            "loss": self.loss,
            "num_batches": self.num_batches,
            "num_skipped": self.num_skipped,
        }
        for name in ("counts", "histogram"):
            part = getattr(self, name)
            values[name] = part and {
                key: np.asarray(value).tolist()
                for key, value in dataclasses.asdict(part).items()
            }
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Makes the sums again."""
        parts = {
            name: kind(**{k: np.asarray(v) for k, v in values[name].items()})
            for name, kind in (("counts", PixelCounts), ("histogram", ScoreHistogram))
            if values[name]
        }
        return cls(**{**values, **parts})
