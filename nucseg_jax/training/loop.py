"""The host loop: fit, and the epochs that it is made of."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tqdm

from nucseg_jax.training.epoch_metrics import EpochMetrics
from nucseg_jax.training.state import TrainState, Variables
from nucseg_jax.training.step import StepMetrics
from nucseg_jax.training.stopping import Stopped, StopRequest
from nucseg_jax.training.validation import Validation

# Steps that may run ahead of the metrics that are read back: reading the newest ones
# would make the host wait for the device at every step.
_READ_BEHIND = 2


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
      NotFiniteError: If more batches in a row were not finite, or all of an epoch.
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
        if stop.ask():
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
        "epoch": progress.epoch + 1,
        "step": int(state.step),
        "seconds": round(progress.seconds, 3),
        "skipped": progress.trained.num_skipped,
    }
    trained = progress.trained.summarize()
    row |= {f"train_{key}": value for key, value in trained.items()}
    return row | {f"val_{key}": value for key, value in validation.metrics.items()}


def _show(bar: tqdm.tqdm, epoch: EpochMetrics, num_images: int) -> None:
    seconds = max(bar.format_dict["elapsed"], 1e-9)
    text = f"loss {epoch.loss / max(1, epoch.num_batches):.4f}, "
    text += f"{num_images / seconds:.1f} images/s"
    if epoch.num_skipped:
        text += f", {epoch.num_skipped} skipped: not finite"
    bar.set_postfix_str(text, refresh=False)
