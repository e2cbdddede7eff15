import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from nucseg_jax.training import losses
from tests.reference import losses as reference

SHAPE = (2, 4, 5, 1)
LOGITS = hnp.arrays(np.float32, SHAPE, elements=st.floats(-20, 20, width=32))
MASKS = hnp.arrays(np.float32, SHAPE, elements=st.sampled_from([0.0, 1.0]))

# Computed apart from this project, from the original notebook's definitions.
MASK = np.array([1, 0, 1, 1], np.float64).reshape(1, 2, 2, 1)
PROBS = np.array([0.9, 0.2, 0.6, 0.4], np.float64).reshape(1, 2, 2, 1)


def logit(probs):
    return jnp.asarray(np.log(probs) - np.log1p(-probs), jnp.float32)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
@pytest.mark.parametrize(
    "loss, golden",
    [
        (losses.soft_dice_loss, 0.2131147541),
        (losses.binary_cross_entropy, 0.4389051057),
        (losses.bce_dice_loss, 0.6520198598),
    ],
)
def test_golden_numbers_of_the_original(transform, loss, golden):
    value = transform(loss)(logit(PROBS), jnp.asarray(MASK, jnp.float32))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, golden, atol=1e-6)


def test_dice_sums_over_the_batch_not_over_each_image():
    probs = np.concatenate([PROBS, np.full_like(PROBS, 0.1)])
    mask = np.concatenate([MASK, np.zeros_like(MASK)])
    value = losses.soft_dice_loss(logit(probs), jnp.asarray(mask, jnp.float32))
    np.testing.assert_allclose(value, 0.2615384615, atol=1e-6)
    assert abs(float(value) - 0.2494145199) > 0.01


@hypothesis.given(LOGITS, MASKS)
def test_losses_equal_the_float64_reference(logits, mask):
    probs = reference.sigmoid(logits)
    np.testing.assert_allclose(
        losses.soft_dice_loss(logits, mask),
        reference.soft_dice_loss(probs, mask),
        atol=2e-6,
    )
    np.testing.assert_allclose(
        losses.binary_cross_entropy(logits, mask),
        reference.binary_cross_entropy(probs, mask),
        rtol=1e-5,
        atol=1e-7,
    )


def test_targets_count_alike():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 4, 4, 3)).astype(np.float32)
    mask = (rng.random((2, 4, 4, 3)) > [0.1, 0.5, 0.9]).astype(np.float32)
    np.testing.assert_allclose(
        losses.soft_dice_loss(logits, mask),
        reference.soft_dice_loss(reference.sigmoid(logits), mask),
        rtol=1e-6,
    )


@pytest.mark.parametrize("loss", [losses.bce_dice_loss, losses.binary_cross_entropy])
def test_gradients_are_those_of_the_value(loss):
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    mask = jnp.asarray(rng.integers(0, 2, SHAPE), jnp.float32)
    check_grads(lambda x: loss(x, mask), (logits,), order=1, modes=["rev"], eps=1e-2)


def test_the_gradient_of_cross_entropy_is_probability_less_mask():
    """At 0, too, where the formula has a corner on either side."""
    logits = jnp.array([0, 0, 1e-8, -1e-8, 5, -5, 30, -100]).reshape(1, 2, 4, 1)
    mask = jnp.array([0.0, 1, 0, 1, 1, 1, 0, 0]).reshape(1, 2, 4, 1)
    grad = jax.grad(losses.binary_cross_entropy)(logits, mask)
    expected = (reference.sigmoid(logits) - np.asarray(mask)) / 8
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("value", [-100.0, 100.0])
@pytest.mark.parametrize("supervision", losses.SUPERVISIONS.values())
def test_extreme_logits_give_finite_losses_and_gradients(value, supervision):
    head_logits = jnp.full((3, *SHAPE), value)
    mask = jnp.ones(SHAPE)
    loss, grad = jax.value_and_grad(supervision)(head_logits, mask)
    assert np.isfinite(loss) and np.isfinite(grad).all()


def test_empty_mask_and_no_foreground_cost_nothing():
    logits, mask = jnp.full(SHAPE, -100.0), jnp.zeros(SHAPE)
    np.testing.assert_allclose(losses.bce_dice_loss(logits, mask), 0, atol=1e-6)


@hypothesis.given(LOGITS, MASKS)
def test_rows_that_are_not_valid_change_nothing(logits, mask):
    padded = [np.concatenate([a, np.full_like(a, 0.7)]) for a in (logits, mask)]
    valid = jnp.array([True, True, False, False])
    np.testing.assert_allclose(
        losses.bce_dice_loss(*padded, valid=valid),
        losses.bce_dice_loss(logits, mask),
        rtol=1e-5,
    )


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 4, 5, 2), (1, 4, 5, 1)])
def test_other_shapes_are_refused_instead_of_broadcast(shape):
    with pytest.raises(ValueError, match="must both be"):
        losses.bce_dice_loss(jnp.zeros(SHAPE), jnp.zeros(shape))


def test_average_supervision_is_the_loss_of_the_mean_probability():
    rng = np.random.default_rng(2)
    head_logits = rng.normal(0, 3, (4, *SHAPE)).astype(np.float32)
    mask = rng.integers(0, 2, SHAPE).astype(np.float32)
    probs = reference.sigmoid(head_logits).mean(0)
    expected = reference.binary_cross_entropy(probs, mask)
    expected += reference.soft_dice_loss(probs, mask)
    value = losses.average_supervision(jnp.asarray(head_logits), mask)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_per_head_supervision_is_the_mean_of_the_losses():
    rng = np.random.default_rng(3)
    head_logits = rng.normal(0, 3, (4, *SHAPE)).astype(np.float32)
    mask = rng.integers(0, 2, SHAPE).astype(np.float32)
    expected = [losses.bce_dice_loss(logits, mask) for logits in head_logits]
    value = losses.per_head_supervision(jnp.asarray(head_logits), mask)
    np.testing.assert_allclose(value, np.mean(expected), rtol=1e-6)


def test_targets_have_losses_of_their_own():
    """Foreground and boundary are masks, distance is a value: only the latter lacks
    the Dice term, which would pull it to 0 and 1."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32)
    mask = jnp.asarray(rng.random((2, 4, 4, 3)), jnp.float32)
    valid = jnp.array([True, False])
    loss = losses.targets_loss(("foreground", "boundary", "distance"))
    parts = [
        losses.bce_dice_loss(logits[..., :1], mask[..., :1], valid=valid),
        losses.bce_dice_loss(logits[..., 1:2], mask[..., 1:2], valid=valid),
        losses.binary_cross_entropy(logits[..., 2:], mask[..., 2:], valid=valid),
    ]
    np.testing.assert_allclose(
        loss(logits, mask, valid=valid), sum(map(float, parts)), rtol=1e-6
    )


@pytest.mark.parametrize("supervision", losses.SUPERVISIONS)
def test_foreground_alone_is_the_originals_loss(supervision):
    rng = np.random.default_rng(0)
    head_logits = jnp.asarray(rng.normal(size=(3, 2, 4, 4, 1)), jnp.float32)
    mask = jnp.asarray(rng.random((2, 4, 4, 1)) > 0.5, jnp.float32)
    ours = losses.make_loss(supervision, ("foreground",))(head_logits, mask)
    np.testing.assert_allclose(
        ours, losses.SUPERVISIONS[supervision](head_logits, mask), rtol=1e-6
    )


def test_distance_is_learned_as_a_value():
    """The loss of a distance is least where the probability equals it."""
    loss = losses.targets_loss(("foreground", "distance"))
    mask = jnp.full((1, 2, 2, 2), 0.3).at[..., 0].set(1.0)
    logit = float(np.log(0.3 / 0.7))
    grad = jax.grad(loss)(jnp.full((1, 2, 2, 2), logit), mask)
    np.testing.assert_allclose(grad[..., 1], 0, atol=1e-7)
