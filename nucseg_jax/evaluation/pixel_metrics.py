"""Pixel metrics: counts that add up over batches, divided once at the end.

`from_batch` takes NumPy arrays, or JAX arrays inside `jax.jit`; both count alike. On
the device counts are int32, where one batch fits; `to_host` makes them int64 before
batches are merged. Foreground is 1, background 0. `valid`, bool [B], leaves out the
rows that fill up a last batch.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # np.ndarray or jax.Array

NUM_BINS = 2048
_MAX_LOGIT = 16.0  # Beyond, float32 probabilities cannot be told from 0 and 1.


class _Mergeable:
    """A frozen dataclass of counts."""

    def merge(self, other: Self) -> Self:
        """Returns the counts of both, as if they had come in one batch."""
        return jax.tree.map(lambda a, b: a + b, self, other)

    def to_host(self) -> Self:
        """Returns the counts as NumPy int64, which no data set overflows."""
        return jax.tree.map(lambda x: np.asarray(x, np.int64), jax.device_get(self))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PixelCounts(_Mergeable):
    """True and false positives and negatives, in pixels; scalars or any one shape.

    Where a ratio would be 0/0, it is 1 if there was no error at all and else 0.
    """

    tp: Array
    fp: Array
    fn: Array
    tn: Array

    @classmethod
    def from_batch(
        cls, foreground: Array, mask: Array, valid: Array | None = None
    ) -> Self:
        """Counts bool predictions [B, ...] against a bool truth of the same shape.

        Raises:
          ValueError: If shapes differ or an array is not bool.
        """
        if foreground.shape != mask.shape:
            raise ValueError(f"foreground {foreground.shape} and mask {mask.shape}")
        if foreground.dtype != bool or mask.dtype != bool:
            raise ValueError(f"expected bool, not {foreground.dtype} and {mask.dtype}")
        rows = _expand(valid, mask.ndim)
        return cls(
            tp=(foreground & mask & rows).sum(),
            fp=(foreground & ~mask & rows).sum(),
            fn=(~foreground & mask & rows).sum(),
            tn=(~foreground & ~mask & rows).sum(),
        )

    def flip(self) -> Self:
        """Returns the counts of the background, seen as the class to find."""
        return type(self)(tp=self.tn, fp=self.fn, fn=self.fp, tn=self.tp)

    @property
    def iou(self) -> Any:
        """Intersection over union of the foreground (Jaccard index)."""
        return self._ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def f1(self) -> Any:
        """Harmonic mean of precision and recall."""
        return self._ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def dice(self) -> Any:
        """The same number as `f1`, by the name used for masks."""
        return self.f1

    @property
    def precision(self) -> Any:
        """Share of the predicted foreground that is true."""
        return self._ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> Any:
        """Share of the true foreground that is found; also called sensitivity."""
        return self._ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> Any:
        """Share of the true background that is left alone."""
        return self._ratio(self.tn, self.tn + self.fp)

    @property
    def accuracy(self) -> Any:
        """Share of all pixels that are right."""
        return self._ratio(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)

    @property
    def hard_mask_auc(self) -> Any:
        """ROC AUC of the thresholded mask, which the original reported as its AUC."""
        return (self.recall + self.specificity) / 2

    @property
    def support(self) -> Any:
        """Number of true foreground pixels."""
        return self.tp + self.fn

    def _ratio(self, part: Array, whole: Array) -> Any:
        faultless = np.asarray(self.fp + self.fn) == 0
        whole = np.asarray(whole)
        ratio = np.asarray(part) / np.where(whole == 0, 1, whole)
        result = np.where(whole == 0, faultless.astype(np.float64), ratio)
        return result.item() if result.ndim == 0 else result


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScoreHistogram(_Mergeable):
    """Pixels by truth and predicted probability: [2, NUM_BINS], background first.

    The bins divide the logits from -16 to 16 evenly: they are finest, in probability,
    near 0 and 1, where most pixels lie. A bin begins at probability .5 exactly.
    """

    counts: Array

    @classmethod
    def from_batch(cls, probs: Array, mask: Array, valid: Array | None = None) -> Self:
        """Counts probabilities [B, ...] by a bool truth of the same shape.

        Raises:
          ValueError: If shapes differ.
        """
        if probs.shape != mask.shape:
            raise ValueError(f"probs {probs.shape} and mask {mask.shape}")
        xp = np if isinstance(probs, np.ndarray) else jnp
        inside = xp.clip(probs.astype(np.float32), 1e-7, 1 - 1e-7)
        # The quotient is below 1 exactly where the probability is below .5.
        logits = xp.log(inside / (1 - inside))
        bins = xp.floor(logits * (NUM_BINS / (2 * _MAX_LOGIT))) + NUM_BINS // 2
        bins = xp.clip(bins, 0, NUM_BINS - 1).astype(np.int32) + NUM_BINS * mask
        weights = xp.broadcast_to(_expand(valid, mask.ndim), mask.shape)
        counts = _count(bins.ravel(), weights.ravel())
        return cls(counts.reshape(2, NUM_BINS))

    @property
    def auc(self) -> float:
        """Area under the ROC curve; ties within a bin count half. NaN if undefined."""
        background, foreground = self.counts.astype(np.float64)
        below = np.cumsum(background) - background / 2
        pairs = background.sum() * foreground.sum()
        return float((foreground * below).sum() / pairs) if pairs else float("nan")

    def best_threshold(self) -> float:
        """Returns the probability whose mask has the highest pixel IoU.

        Without any foreground there is nothing to choose by, and it is .5.
        """
        background, foreground = self.counts.astype(np.float64)
        if not foreground.any():
            return 0.5
        tp = np.cumsum(foreground[::-1])[::-1]
        fp = np.cumsum(background[::-1])[::-1]
        iou = tp / np.maximum(fp + foreground.sum(), 1)
        logit = (int(iou.argmax()) / NUM_BINS - 0.5) * 2 * _MAX_LOGIT
        return float(1 / (1 + np.exp(-logit)))


def _expand(valid: Array | None, rank: int) -> Array:
    if valid is None:
        return np.True_
    return valid.reshape(valid.shape[:1] + (1,) * (rank - 1))


def _count(bins: Array, weights: Array) -> Array:
    """Counts each bin's entries of true weight: 2 * NUM_BINS integers."""
    if isinstance(bins, np.ndarray):
        return np.bincount(bins[weights], minlength=2 * NUM_BINS)
    counts = jnp.zeros(2 * NUM_BINS, jnp.int32)
    return counts.at[bins].add(weights.astype(jnp.int32))
