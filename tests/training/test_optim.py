import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nucseg_jax.config import TrainConfig
from nucseg_jax.training import optim
from tests.reference.amsgrad import amsgrad


def follow(tx, gradients):
    """Returns a scalar parameter after each step."""

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    params = jnp.zeros([])
    gradients = jnp.asarray(gradients, jnp.float32)
    return np.array(jax.lax.scan(step, (params, tx.init(params)), gradients)[1])


def our_amsgrad(rate):
    return optax.chain(optim.scale_by_amsgrad(), optax.scale(-rate))


GRADIENTS = {
    "noisy": np.random.default_rng(0).normal(0.1, 1.0, 1000),
    "one large, then small": np.r_[1.0, np.full(999, 0.1)],
    "decaying": 1 / np.arange(1, 1001),
    "tiny": np.full(50, 1e-9),
}


@pytest.mark.parametrize("kind", GRADIENTS)
def test_amsgrad_equals_the_float64_reference(kind):
    gradients = GRADIENTS[kind]
    expected = np.array(amsgrad(gradients, rate=1e-3))
    path = follow(our_amsgrad(1e-3), gradients)
    np.testing.assert_allclose(path, expected, rtol=1e-4, atol=2e-5)


def test_optax_amsgrad_is_another_algorithm():
    """The reason for our own: after one large gradient it stays slow for good."""
    gradients = GRADIENTS["one large, then small"]
    ours = follow(our_amsgrad(1e-3), gradients)[-1]
    theirs = follow(optax.amsgrad(1e-3), gradients)[-1]
    assert theirs / ours < 0.2


def rates(config, steps_per_epoch=10):
    schedule = optim.create_schedule(config, steps_per_epoch)
    steps = range(config.num_epochs * steps_per_epoch)
    return np.array([float(schedule(step)) for step in steps])


def test_the_original_schedule():
    values = rates(TrainConfig())
    np.testing.assert_allclose(values[:60], 1e-3, rtol=1e-6)
    np.testing.assert_allclose(values[60:], 5e-4, rtol=1e-6)
    assert len(values) == 200


def test_step_decay_halves_at_each_epoch_counted_from_the_start():
    config = TrainConfig(
        num_epochs=6, warmup_epochs=1, decay="step", decay_epochs=(2, 4)
    )
    values = rates(config)
    np.testing.assert_allclose(values[10:20], 1e-3, rtol=1e-6)
    np.testing.assert_allclose(values[20:40], 5e-4, rtol=1e-6)
    np.testing.assert_allclose(values[40:], 2.5e-4, rtol=1e-6)


def test_warm_up_rises_evenly_from_zero():
    values = rates(TrainConfig(num_epochs=4, warmup_epochs=2, decay="constant"))
    np.testing.assert_allclose(values[:20], np.arange(20) / 20 * 1e-3, rtol=1e-5)
    np.testing.assert_allclose(values[20:], 1e-3, rtol=1e-6)


def test_cosine_falls_to_zero_at_the_last_step():
    config = TrainConfig(num_epochs=10, warmup_epochs=2, decay="cosine")
    values = rates(config)
    expected = 1e-3 * (1 + np.cos(np.pi * np.arange(80) / 80)) / 2
    np.testing.assert_allclose(values[20:], expected, rtol=1e-4, atol=1e-9)
    assert float(optim.create_schedule(config, 10)(100)) < 1e-9


def test_clipping_bounds_the_global_norm():
    tx = optim.create_optimizer(TrainConfig(clip_norm=1.0), steps_per_epoch=1)
    grads = {"a": jnp.full(3, 100.0), "b": jnp.full(4, 100.0)}
    _, state = tx.update(grads, tx.init(grads), grads)
    moments = optax.tree.get(state, "mean")
    np.testing.assert_allclose(optax.tree.norm(moments), 0.1, rtol=1e-5)
