"""The host loop: fit, and the epochs of training and validation it is made of."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import tqdm

from nucseg_jax.config import InferenceConfig
from nucseg_jax.evaluation.pixel_metrics import PixelCounts, ScoreHistogram
from nucseg_jax.training.state import TrainState, Variables
from nucseg_jax.training.step import EvalMetrics, StepMetrics
from nucseg_jax.training.stopping import Stopped, StopRequest

# Steps that may run ahead of the metrics that are read back: reading the newest ones
# would make the host wait for the device at every step.
_READ_BEHIND = 2
# Fast mode takes the cheapest head that loses no more pixel IoU than this.
_FAST_MODE_TOLERANCE = 0.006


class NotFiniteError(ValueError):
    """Loss or gradients were not finite too often.

    Attributes:
      index: Positions in the list of examples of the last batch.
    """

    def __init__(self, index: Sequence[int], num_batches: int):
        self.index = list(index)
        super().__init__(
            f"loss or gradients were not finite in {num_batches} batches in a row"
        )


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


@dataclasses.dataclass
class Progress:
    """How far an epoch has come.

    Attributes:
      epoch: From 0.
      trained: Sums over its training steps.
      seconds: Spent on them.
    """

    epoch: int
    trained: EpochMetrics = dataclasses.field(default_factory=EpochMetrics)
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Validation:
    """Metrics of a pass over the validation set, and what it chose.

    Attributes:
      metrics: Of the averaged heads, and "best_iou", of them or, where heads stand
        alone, of the best one.
      inference: What was chosen.
    """

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
    begin: Progress | None = None,
    stop: StopRequest | None = None,
    save_progress: Callable[[TrainState, Progress], None] | None = None,
    max_skipped: int = 10,
) -> TrainState:
    """Trains from the state's step to the end of the last epoch.

    Args:
      state: Where to begin.
      batches: Endless; the first one belongs to the state's step.
      train_step: Compiled; puts the batch onto the devices, and may take over the
        state's memory.
      validate: Measures variables on the validation set; may raise `Stopped`.
      num_epochs: Epochs of the whole run, those done before included.
      steps_per_epoch: Batches an epoch.
      end_epoch: Called with the state, the epoch's row of numbers and the validation,
        to record and to save.
      begin: Progress within the epoch to go on with; None at the border of two.
      stop: Asked before each step, and after the last one of an epoch.
      save_progress: Called with the state before `Stopped` is raised.
      max_skipped: Batches in a row, within an epoch, whose loss or gradients may be not
        finite.

    Returns:
      The final state.

    Raises:
      Stopped: If `stop` was requested; the progress is saved.
      NotFiniteError: If more batches in a row were not finite.
    """
    stop = stop or StopRequest()
    progress = begin or Progress(int(state.step) // steps_per_epoch)
    while progress.epoch < num_epochs:
        start = time.perf_counter()
        name = f"epoch {progress.epoch + 1}/{num_epochs}"
        with tqdm.tqdm(
            total=steps_per_epoch,
            initial=progress.trained.num_steps,
            desc=name,
            unit="step",
        ) as bar:
            state = train_epoch(
                state,
                batches,
                train_step,
                progress.trained,
                steps_per_epoch,
                bar=bar,
                stop=stop,
                max_skipped=max_skipped,
            )
        progress.seconds += time.perf_counter() - start
        try:
            stop.check()
            validation = validate(state.variables)
        except Stopped:
            if save_progress and progress.trained.num_steps:
                save_progress(state, progress)
            raise
        end_epoch(state, _make_row(state, progress, validation), validation)
        progress = Progress(progress.epoch + 1)
    return state


def train_epoch(
    state: TrainState,
    batches: Iterator[Mapping[str, Any]],
    train_step: Callable[..., tuple[TrainState, StepMetrics]],
    trained: EpochMetrics,
    num_steps: int,
    *,
    bar: tqdm.tqdm,
    stop: StopRequest,
    max_skipped: int,
) -> TrainState:
    """Trains to the end of the epoch, or until a stop is requested.

    Args:
      state: Where to begin.
      batches: As those of `fit`.
      train_step: As that of `fit`.
      trained: Takes up the sums of the steps; may hold some already.
      num_steps: Of the whole epoch.
      bar: Shows the steps.
      stop: Asked before each step.
      max_skipped: As that of `fit`.

    Returns:
      The state after the last step.
    """
    pending: collections.deque[tuple[StepMetrics, Any]] = collections.deque()
    num_images, in_a_row = 0, 0

    def read_oldest() -> None:
        nonlocal in_a_row
        metrics, index = pending.popleft()
        trained.add(metrics)
        in_a_row = 0 if metrics.finite else in_a_row + 1
        # An epoch without a finite batch has nothing to tell.
        if in_a_row > max_skipped or trained.num_skipped == num_steps:
            raise NotFiniteError(index, in_a_row)

    for _ in range(trained.num_steps, num_steps):
        if stop.requested:
            break
        try:
            batch = next(batches)
        except Exception:
            # The signal may have gone to the loading processes too. It is not asked for
            # anew: other processes would not ask.
            if stop.signum:
                break
            raise
        num_images += len(batch["valid"])
        state, metrics = train_step(state, batch)
        pending.append((metrics, batch["index"]))
        if len(pending) > _READ_BEHIND:
            read_oldest()
            _show(bar, trained, num_images)
        bar.update()
    while pending:
        read_oldest()
    _show(bar, trained, num_images)
    return state


def _make_row(
    state: TrainState, progress: Progress, validation: Validation
) -> dict[str, float]:
    row: dict[str, float] = {
        "epoch": progress.epoch,
        "step": int(state.step),
        "seconds": round(progress.seconds, 3),
        "skipped": progress.trained.num_skipped,
    }
    trained = progress.trained.summarize()
    row |= {f"train_{key}": value for key, value in trained.items()}
    return row | {f"val_{key}": value for key, value in validation.metrics.items()}


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
        heads: PixelCounts | None = None
        for batch in batches:
            stop.check()
            metrics = eval_step(variables, batch)
            total.add(metrics.step)
            counts = metrics.heads.to_host()
            heads = counts if heads is None else heads.merge(counts)
        summary = total.summarize()
        assert heads is not None and total.histogram is not None
        head_ious = np.asarray(heads.iou)
        best_iou = summary["iou"]
        if heads_stand_alone:
            best_iou = max(best_iou, float(head_ious.max()))
        return Validation(
            metrics=summary | {"best_iou": best_iou},
            inference=InferenceConfig(
                threshold=total.histogram.best_threshold(),
                fast_head=choose_fast_head(head_ious, summary["iou"]),
            ),
        )

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


def _show(bar: tqdm.tqdm, epoch: EpochMetrics, num_images: int) -> None:
    seconds = max(bar.format_dict["elapsed"], 1e-9)
    text = f"loss {epoch.loss / max(1, epoch.num_batches):.4f}, "
    text += f"{num_images / seconds:.1f} images/s"
    if epoch.num_skipped:
        text += f", {epoch.num_skipped} skipped: not finite"
    bar.set_postfix_str(text, refresh=False)
