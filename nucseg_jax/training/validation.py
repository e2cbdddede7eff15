"""A pass over the validation set: its metrics, and the head that fast mode takes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from nucseg_jax.config import InferenceConfig
from nucseg_jax.evaluation.pixel_metrics import PixelCounts
from nucseg_jax.training.epoch_metrics import EpochMetrics
from nucseg_jax.training.state import Variables
from nucseg_jax.training.step import EvalMetrics
from nucseg_jax.training.stopping import StopRequest

# Fast mode takes the cheapest head that loses no more pixel IoU than this.
_FAST_MODE_TOLERANCE = 0.006


@dataclasses.dataclass(frozen=True)
class Validation:
    """Metrics of a pass over the validation set, and what it chose.

    Attributes:
      metrics: Of the averaged heads, and "best_iou", of them or, where heads stand
        alone, of the best one; where there are no nuclei, the negative loss instead.
      inference: What was chosen.
      has_nuclei: Whether any pixel is foreground.
    """

    metrics: Mapping[str, float]
    inference: InferenceConfig
    has_nuclei: bool = True


def make_validate(
    eval_step: Callable[[Variables, Mapping[str, Any]], EvalMetrics],
    batches: Iterable[Mapping[str, Any]],
    stop: StopRequest | None = None,
    *,
    heads_stand_alone: bool = True,
) -> Callable[[Variables], Validation]:
    """Makes `validate(variables)`: one pass over the validation batches.

    Args:
      eval_step: Compiled.
      batches: One pass each time they are iterated over.
      stop: `validate` raises `Stopped` as soon as it is requested.
      heads_stand_alone: Whether a head may be used by itself. If not, one that does
        better than the average by chance must not choose the best checkpoint.
    """
    stop = stop or StopRequest()

    def validate(variables: Variables) -> Validation:
        total = EpochMetrics()
        heads: list[PixelCounts] = []
        for batch in batches:
            stop.check()
            metrics = eval_step(variables, batch)
            total.add(metrics.step)
            heads.append(metrics.heads.to_host())
        summary = total.summarize()
        assert total.counts is not None and total.histogram is not None
        head_ious = np.asarray(functools.reduce(PixelCounts.merge, heads).iou)
        best_iou = summary["iou"]
        if heads_stand_alone:
            best_iou = max(best_iou, float(head_ious.max()))
        chosen = InferenceConfig(
            threshold=total.histogram.best_threshold(),
            fast_head=choose_fast_head(head_ious, summary["iou"]),
        )
        has_nuclei = bool(total.counts.support)
        if not has_nuclei:
            # Whatever is found is wrong there, and finding nothing is without a fault.
            best_iou, chosen = -summary["loss"], InferenceConfig()
        return Validation(summary | {"best_iou": best_iou}, chosen, has_nuclei)

    return validate


def choose_fast_head(head_ious: np.ndarray, accurate_iou: float) -> int:
    """Chooses the head for fast mode: the cheapest that is nearly as good as any.

    Args:
      head_ious: Pixel IoU of heads 1..L on validation, [L].
      accurate_iou: Pixel IoU of their average.

    Returns:
      Column j of the first head, from 1, within `_FAST_MODE_TOLERANCE` of the
      average and of the best head; the best head if none is.
    """
    best = max(accurate_iou, head_ious.max())
    enough = head_ious >= best - _FAST_MODE_TOLERANCE
    return int(np.argmax(enough) if enough.any() else np.argmax(head_ious)) + 1
