import functools
import itertools
import json
import os
import signal

import jax
import numpy as np
import pytest

from nucseg_jax.config import InferenceConfig
from nucseg_jax.training import losses
from nucseg_jax.training.epoch_metrics import EpochMetrics
from nucseg_jax.training.loop import NotFiniteError, Progress, fit
from nucseg_jax.training.step import make_train_step
from nucseg_jax.training.stopping import Stopped, StopRequest
from nucseg_jax.training.validation import Validation
from tests.training.test_step import create_state, make_batch


def test_fit_takes_every_step_once_and_reports_every_epoch():
    seen, rows = [], []
    step = jax.jit(make_train_step(losses.average_supervision))

    def batches():
        for number in itertools.count():
            seen.append(number)
            yield make_batch()

    def validate(variables):
        return Validation({"loss": 0.5, "iou": 0.25}, InferenceConfig())

    state = fit(
        create_state(),
        batches(),
        step,
        validate,
        num_epochs=3,
        steps_per_epoch=4,
        end_epoch=lambda state, row, validation: rows.append(row),
    )
    assert int(state.step) == 12 and seen == list(range(12))
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert rows[2]["train_loss"] < rows[0]["train_loss"]
    assert rows[0]["val_iou"] == 0.25


def test_fit_begins_at_the_epoch_of_its_state():
    rows = []
    state = create_state().replace(step=np.int32(8))
    fit(
        state,
        itertools.repeat(make_batch()),
        jax.jit(make_train_step(losses.average_supervision)),
        lambda variables: Validation({"iou": 0.0}, InferenceConfig()),
        num_epochs=3,
        steps_per_epoch=4,
        end_epoch=lambda state, row, validation: rows.append(row["epoch"]),
    )
    assert rows == [3]


def fit_batches(state, batches, num_epochs=2, **options):
    """Four steps an epoch, validation and saving left out; returns state and rows."""
    rows = []
    state = fit(
        state,
        batches,
        compile_once(),
        lambda variables: Validation({"iou": 0.0}, InferenceConfig()),
        num_epochs=num_epochs,
        steps_per_epoch=4,
        end_epoch=lambda state, row, validation: rows.append(row),
        **options,
    )
    return state, rows


@functools.cache
def compile_once():
    return jax.jit(make_train_step(losses.average_supervision))


def number_batches(first=0, poisoned=(), stop_after=None):
    """Batches that differ; some hold a NaN, one is followed by a signal."""
    for number in itertools.count(first):
        batch = make_batch(seed=number)
        if number in poisoned:
            batch["image"][0] = np.nan
        yield batch
        if number == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("stop_after", [1, 4, 6])
def test_a_stop_amid_an_epoch_and_going_on_are_as_if_nothing_was(stop_after):
    """Parameters, and the sums of the epoch, are the same to the last bit."""
    unbroken, rows = fit_batches(create_state(), number_batches())
    saved, begun = [], []
    with StopRequest() as stop, pytest.raises(Stopped):
        fit_batches(
            create_state(),
            number_batches(stop_after=stop_after),
            stop=stop,
            save_progress=lambda *args: saved.append(args),
        )
    (state, progress), *_ = saved
    assert int(state.step) > stop_after
    trained = json.loads(json.dumps(progress.trained.to_dict()))
    begun = Progress(progress.epoch, EpochMetrics.from_dict(trained))
    resumed, rest = fit_batches(state, number_batches(int(state.step)), begin=begun)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, unbroken.params)
    for old, new in zip(rows[progress.epoch :], rest, strict=True):
        assert {**old, "seconds": 0} == {**new, "seconds": 0}


def test_a_stop_during_validation_saves_the_whole_epoch():
    saved = []

    def validate(variables):
        raise Stopped(signal.SIGINT)

    with pytest.raises(Stopped):
        fit(
            create_state(),
            number_batches(),
            compile_once(),
            validate,
            num_epochs=1,
            steps_per_epoch=4,
            end_epoch=lambda *args: None,
            save_progress=lambda *args: saved.append(args),
        )
    ((state, progress),) = saved
    assert int(state.step) == progress.trained.num_steps == 4
    _, (row,) = fit_batches(state, number_batches(4), num_epochs=1, begin=progress)
    assert row["step"] == 4


def test_a_stop_before_the_first_step_saves_nothing():
    saved = []
    with StopRequest() as stop, pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGTERM)
        fit_batches(
            create_state(),
            number_batches(),
            stop=stop,
            save_progress=lambda *args: saved.append(args),
        )
    assert not saved


def test_batches_that_are_not_finite_are_skipped_and_counted():
    state, rows = fit_batches(create_state(), number_batches(poisoned=(1, 2, 5)))
    assert [row["skipped"] for row in rows] == [2, 1]
    assert int(state.step) == 8
    assert all(np.isfinite(row["train_loss"]) for row in rows)


def test_too_many_of_them_in_a_row_end_the_training():
    batches = number_batches(poisoned=range(2, 9))
    with pytest.raises(NotFiniteError) as caught:
        fit_batches(create_state(), batches, max_skipped=3)
    assert caught.value.index == [0, 1, 2, 3]
    assert "4 batches in a row" in str(caught.value)


def test_an_epoch_of_them_alone_ends_the_training_and_names_the_last():
    batches = number_batches(poisoned=range(9))
    with pytest.raises(NotFiniteError) as caught:
        fit_batches(create_state(), batches, max_skipped=30)
    assert caught.value.index == [0, 1, 2, 3]
