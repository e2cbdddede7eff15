import dataclasses

import jax
import numpy as np
import pytest

from nucseg_jax.training import losses
from nucseg_jax.training.step import make_eval_step
from nucseg_jax.training.validation import choose_fast_head, make_validate
from tests.helpers import random_variables
from tests.training.test_step import MODEL, make_batch


@pytest.mark.parametrize(
    "ious, accurate, chosen",
    [
        ([0.80, 0.85, 0.90, 0.90], 0.90, 3),
        ([0.896, 0.85, 0.90, 0.90], 0.90, 1),
        ([0.80, 0.85, 0.83, 0.84], 0.90, 2),
        ([0.95, 0.85, 0.83, 0.84], 0.90, 1),
        ([0.78, 0.87, 0.895, 0.9], 0.87, 3),
    ],
)
def test_fast_head_is_the_cheapest_that_is_good_enough(ious, accurate, chosen):
    assert choose_fast_head(np.array(ious), accurate) == chosen


def test_validation_measures_and_chooses():
    validate = make_validate(
        jax.jit(make_eval_step(MODEL, losses.average_supervision)),
        [make_batch(seed=0), make_batch(seed=4, num_valid=2)],
    )
    result = validate(random_variables(MODEL))
    assert set(result.metrics) == {"loss", "accuracy", "iou", "f1", "auc", "best_iou"}
    assert result.metrics["best_iou"] >= result.metrics["iou"]
    assert result.inference.fast_head in (1, 2)
    assert 0 < result.inference.threshold < 1
    assert result.has_nuclei


def test_where_there_are_no_nuclei_the_loss_chooses():
    """An empty prediction is faultless there, and any other is as bad as the next."""
    batch = make_batch()
    validate = make_validate(
        jax.jit(make_eval_step(MODEL, losses.average_supervision)),
        [batch | {"mask": np.zeros_like(batch["mask"])}],
    )
    result = validate(random_variables(MODEL))
    assert result.metrics["best_iou"] == -result.metrics["loss"]
    assert not result.has_nuclei and result.inference.fast_head == 0


@pytest.mark.parametrize("stand_alone", [True, False])
def test_a_head_chooses_the_best_checkpoint_only_where_it_may_be_used(stand_alone):
    """In the midst of training, a head may do better by chance than the average."""
    eval_step = jax.jit(make_eval_step(MODEL, losses.average_supervision))

    def heads_are_right(variables, batch):
        metrics = eval_step(variables, batch)
        heads = metrics.heads
        right = dataclasses.replace(
            heads, tp=heads.tp + heads.fn, fp=heads.fp * 0, fn=heads.fn * 0
        )
        return dataclasses.replace(metrics, heads=right)

    validate = make_validate(
        heads_are_right, [make_batch()], heads_stand_alone=stand_alone
    )
    metrics = validate(random_variables(MODEL)).metrics
    assert metrics["iou"] < 1
    assert metrics["best_iou"] == (1 if stand_alone else metrics["iou"])
