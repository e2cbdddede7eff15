import jax
import pytest

from nucseg_jax.training import losses
from nucseg_jax.training.epoch_metrics import EpochMetrics
from nucseg_jax.training.step import make_eval_step
from tests.helpers import random_variables
from tests.training.test_step import MODEL, make_batch


def test_epoch_metrics_do_not_depend_on_the_partition():
    variables = random_variables(MODEL)
    step = jax.jit(make_eval_step(MODEL, losses.average_supervision))
    whole, parts = EpochMetrics(), EpochMetrics()
    batch = make_batch(4)
    whole.add(step(variables, batch).step)
    for rows in (slice(0, 3), slice(3, 4)):
        part = {name: value[rows] for name, value in batch.items()}
        parts.add(step(variables, part).step)
    for name in ("accuracy", "iou", "f1", "auc"):
        assert whole.summarize()[name] == pytest.approx(parts.summarize()[name])


def test_no_batch_is_an_error_not_a_nan():
    with pytest.raises(ValueError, match="no batch"):
        EpochMetrics().summarize()
