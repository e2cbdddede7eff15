"""The host loop: fit, and the epochs of training and validation it is made of."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tqdm

from nucseg_jax.config import InferenceConfig
from nucseg_jax.evaluation.pixel_metrics import PixelCounts, ScoreHistogram
from nucseg_jax.training.state import TrainState, Variables
from nucseg_jax.training.step import EvalMetrics, StepMetrics

# Steps that may run ahead of the metrics that are read back: reading the newest ones
# would make the host wait for the device at every step.
_READ_BEHIND = 2
# Fast mode takes the cheapest head that loses no more pixel IoU than this.
_FAST_MODE_TOLERANCE = 0.006


@dataclasses.dataclass
class EpochMetrics:
    """Sums over the batches of an epoch."""

    loss: float = 0.0
    num_batches: int = 0
    counts: PixelCounts | None = None
    histogram: ScoreHistogram | None = None

    def add(self, metrics: StepMetrics) -> None:
        """Adds one batch; waits until the device has computed it."""
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


@dataclasses.dataclass(frozen=True)
class Validation:
    """Metrics of a pass over the validation set, and what it chose."""

    metrics: Mapping[str, float]
    inference: InferenceConfig


def fit(
    state: TrainState,
    batches: Iterator[Mapping[str, Any]],
    train_step: Callable[..., tuple[TrainState, StepMetrics]],
    validate: Callable[[Variables], Validation],
    *,
    num_epochs: int,
    steps_per_epoch: int,
    end_epoch: Callable[[TrainState, dict[str, float], Validation], None],
) -> TrainState:
    """Trains from the state's step to the end of the last epoch.

    Args:
      state: Where to begin, at the border of an epoch.
      batches: Endless; the first one belongs to the state's step.
      train_step: Compiled; may take over the state's memory.
      validate: Measures variables on the validation set.
      num_epochs: Epochs of the whole run, those done before included.
      steps_per_epoch: Batches an epoch.
      end_epoch: Called with the state, the epoch's row of numbers and the validation,
        to record and to save.

    Returns:
      The final state.
    """
    for epoch in range(int(state.step) // steps_per_epoch, num_epochs):
        start = time.perf_counter()
        name = f"epoch {epoch + 1}/{num_epochs}"
        state, trained = train_epoch(
            state, batches, train_step, steps_per_epoch, name=name
        )
        seconds = time.perf_counter() - start
        validation = validate(state.variables)
        row = {"epoch": epoch, "step": int(state.step), "seconds": round(seconds, 3)}
        row |= {f"train_{key}": value for key, value in trained.summarize().items()}
        row |= {f"val_{key}": value for key, value in validation.metrics.items()}
        end_epoch(state, row, validation)
    return state


def train_epoch(
    state: TrainState,
    batches: Iterator[Mapping[str, Any]],
    train_step: Callable[..., tuple[TrainState, StepMetrics]],
    num_steps: int,
    *,
    name: str,
) -> tuple[TrainState, EpochMetrics]:
    """Takes `num_steps` training steps under a progress bar."""
    epoch = EpochMetrics()
    pending: collections.deque[StepMetrics] = collections.deque()
    num_images = 0
    with tqdm.tqdm(total=num_steps, desc=name, unit="step", leave=True) as bar:
        for _ in range(num_steps):
            batch = next(batches)
            num_images += len(batch["image"])
            state, metrics = train_step(state, device_batch(batch))
            pending.append(metrics)
            if len(pending) > _READ_BEHIND:
                epoch.add(pending.popleft())
                _show(bar, epoch, num_images)
            bar.update()
        while pending:
            epoch.add(pending.popleft())
        _show(bar, epoch, num_images)
    return state, epoch


def make_validate(
    eval_step: Callable[[Variables, Mapping[str, Any]], EvalMetrics],
    batches: Iterable[Mapping[str, Any]],
) -> Callable[[Variables], Validation]:
    """Makes `validate(variables)`: one pass over the validation batches."""

    def validate(variables: Variables) -> Validation:
        total = EpochMetrics()
        heads: PixelCounts | None = None
        for batch in batches:
            metrics = eval_step(variables, device_batch(batch))
            total.add(metrics.step)
            counts = metrics.heads.to_host()
            heads = counts if heads is None else heads.merge(counts)
        summary = total.summarize()
        assert heads is not None and total.histogram is not None
        return Validation(
            metrics=summary,
            inference=InferenceConfig(
                threshold=total.histogram.best_threshold(),
                fast_head=choose_fast_head(np.asarray(heads.iou), summary["iou"]),
            ),
        )

    return validate


def choose_fast_head(head_ious: np.ndarray, accurate_iou: float) -> int:
    """Chooses the head for fast mode: the cheapest that is nearly as good as all.

    Args:
      head_ious: Pixel IoU of heads 1..L on validation, [L].
      accurate_iou: Pixel IoU of their average.

    Returns:
      Column j of the first head, from 1, within `_FAST_MODE_TOLERANCE` of the
      average; the best head if none is.
    """
    enough = head_ious >= accurate_iou - _FAST_MODE_TOLERANCE
    return int(np.argmax(enough) if enough.any() else np.argmax(head_ious)) + 1


def device_batch(batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Puts what the steps use onto the device."""
    return {name: jax.device_put(batch[name]) for name in ("image", "mask", "valid")}


def _show(bar: tqdm.tqdm, epoch: EpochMetrics, num_images: int) -> None:
    seconds = max(bar.format_dict["elapsed"], 1e-9)
    bar.set_postfix_str(
        f"loss {epoch.loss / epoch.num_batches:.4f}, "
        f"{num_images / seconds:.1f} images/s",
        refresh=False,
    )
