import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nucseg_jax.config import TrainConfig
from nucseg_jax.evaluation.pixel_metrics import PixelCounts
from nucseg_jax.network.unet_plus_plus import UNetPlusPlus, combine_heads
from nucseg_jax.training import losses
from nucseg_jax.training.optim import create_optimizer
from nucseg_jax.training.state import create_train_state
from nucseg_jax.training.step import make_eval_step, make_train_step
from tests.helpers import TINY_FEATURES, disc_image, random_variables

MODEL = UNetPlusPlus(TINY_FEATURES, batch_norm_momentum=0.9)


def create_state(ema_decay=0.0, **settings):
    config = TrainConfig(decay="constant", learning_rate=1e-2, **settings)
    return create_train_state(
        MODEL, create_optimizer(config, 10), seed=0, ema_decay=ema_decay
    )


def make_batch(batch_size=4, num_valid=None, seed=0):
    images, labels = zip(
        *(disc_image(16, seed + k, num_discs=2) for k in range(batch_size)), strict=True
    )
    gray = np.stack(images).astype(np.float32)[..., None] / 255
    return {
        "image": np.repeat(gray, 3, axis=-1),
        "mask": (np.stack(labels) > 0).astype(np.float32)[..., None],
        "valid": np.arange(batch_size) < (num_valid or batch_size),
        "index": np.arange(batch_size, dtype=np.int32),
    }


def compile_step(supervision="average", ema_decay=0.0):
    step = make_train_step(losses.SUPERVISIONS[supervision], ema_decay=ema_decay)
    return jax.jit(step)


@pytest.mark.parametrize("supervision", losses.SUPERVISIONS)
def test_loss_falls_on_a_repeated_batch(supervision):
    state, step, batch = create_state(), compile_step(supervision), make_batch()
    values = []
    for _ in range(40):
        state, metrics = step(state, batch)
        values.append(float(metrics.loss))
    assert values[-1] < 0.6 * values[0]
    assert int(state.step) == 40


def test_step_is_the_gradient_of_the_loss_through_the_optimizer():
    state, batch = create_state(), make_batch()

    def loss_of(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        head_logits, _ = MODEL.apply(
            variables, batch["image"], train=True, mutable=["batch_stats"]
        )
        return losses.average_supervision(head_logits, batch["mask"])

    grads = jax.jit(jax.grad(loss_of))(state.params)
    expected = state.apply_gradients(grads=grads, batch_stats=state.batch_stats).params
    after, _ = compile_step()(state, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        after.params,
        expected,
    )


def test_averaged_variables_follow_the_present_ones():
    state, step = create_state(ema_decay=0.5), compile_step(ema_decay=0.5)
    expected = state.params["head_1"]["kernel"]
    for count in range(1, 6):
        state, _ = step(state, make_batch())
        decay = min(0.5, (1 + count) / (10 + count))
        now = state.params["head_1"]["kernel"]
        expected = decay * expected + (1 - decay) * now
    np.testing.assert_allclose(
        state.variables["params"]["head_1"]["kernel"], expected, rtol=1e-5
    )
    assert np.abs(state.variables["params"]["head_1"]["kernel"] - now).max() > 0


def test_evaluation_ignores_padded_rows():
    variables = random_variables(MODEL)
    step = jax.jit(make_eval_step(MODEL, losses.average_supervision))
    full, padded = make_batch(4), make_batch(4, num_valid=3)
    padded["image"] = padded["image"] * padded["valid"][:, None, None, None]
    short = {name: value[:3] for name, value in full.items()}
    expected, measured = step(variables, short), step(variables, padded)
    jax.tree.map(np.testing.assert_array_equal, expected.heads, measured.heads)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        expected.step,
        measured.step,
    )


def test_evaluation_counts_each_head_and_their_average():
    variables, batch = random_variables(MODEL), make_batch()
    metrics = jax.jit(make_eval_step(MODEL, losses.average_supervision))(
        variables, batch
    )
    head_logits = MODEL.apply(variables, batch["image"])
    truth = batch["mask"][..., 0] > 0.5
    for index, logits in enumerate(head_logits):
        alone = PixelCounts.from_batch(np.asarray(logits[..., 0] >= 0), truth)
        assert int(metrics.heads.tp[index]) == int(alone.tp)
    average = np.asarray(combine_heads(head_logits)[..., 0] >= 0)
    assert int(metrics.step.counts.fp) == int((average & ~truth).sum())
    assert int(metrics.step.histogram.counts.sum()) == truth.size


def test_an_epoch_traces_each_step_once():
    traces = []

    def count(step, name):
        def counted(*args):
            traces.append(name)
            return step(*args)

        return jax.jit(counted)

    train = count(make_train_step(losses.average_supervision), "train")
    evaluate = count(make_eval_step(MODEL, losses.average_supervision), "eval")
    state = create_state()
    for seed in range(3):
        state, _ = train(state, make_batch(seed=seed))
    for num_valid in (4, 4, 1):
        evaluate(state.variables, make_batch(num_valid=num_valid))
    assert traces == ["train", "eval"]


def test_state_is_given_away_and_comes_back_whole():
    state = create_state(ema_decay=0.9)
    step = jax.jit(
        make_train_step(losses.average_supervision, ema_decay=0.9), donate_argnums=0
    )
    batch = jax.tree.map(jnp.asarray, make_batch())
    for _ in range(3):
        state, metrics = step(state, batch)
    assert np.isfinite(float(metrics.loss))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_batch_that_is_not_finite_moves_nothing_but_the_step_number(bad):
    state, step = create_state(ema_decay=0.5), compile_step(ema_decay=0.5)
    state, metrics = step(state, make_batch())
    assert bool(metrics.finite)
    poisoned = make_batch()
    poisoned["image"][1, 2, 3] = bad
    after, metrics = step(state, poisoned)
    assert not bool(metrics.finite)
    assert int(after.step) == 2
    for name in ("params", "opt_state", "batch_stats", "ema"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(after, name), getattr(state, name)
        )
