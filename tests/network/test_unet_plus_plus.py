import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nucseg_jax.network.unet_plus_plus import (
    UNetPlusPlus,
    average_heads,
    combine_heads,
    prune,
    select_targets,
)
from tests.helpers import TINY_FEATURES, random_variables


def count(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def run_training(model, variables, image):
    def apply(variables, image):
        return model.apply(variables, image, train=True, mutable=["batch_stats"])

    return jax.jit(apply)(variables, image)


def test_size_of_the_original_network():
    image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    variables = jax.eval_shape(UNetPlusPlus().init, jax.random.key(0), image)
    assert count(variables["params"]) == 32_038_980
    assert count(variables["batch_stats"]) == 11_264


@pytest.mark.parametrize("features", [(2, 3), (2, 3, 4), (2, 3, 4, 5, 6)])
@pytest.mark.parametrize("num_targets", [1, 3])
def test_shape_of_head_logits(features, num_targets):
    model = UNetPlusPlus(features, num_targets=num_targets)
    image = jax.ShapeDtypeStruct((2, 32, 48, 3), jnp.float32)
    shape = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x)[0], image
    )
    assert shape.shape == (len(features) - 1, 2, 32, 48, num_targets)
    assert shape.dtype == jnp.float32


def test_nodes_see_what_the_paper_says():
    """x[i, j] joins its j left neighbours with the upsampled node below."""
    features = (2, 3, 4, 5)
    variables = random_variables(UNetPlusPlus(features))
    for j in range(1, 4):
        for i in range(4 - j):
            kernel = variables["params"][f"x_{i}_{j}"]["Conv_0"]["kernel"]
            assert kernel.shape == (3, 3, features[i] * (j + 1), features[i])
            up = variables["params"][f"up_{i}_{j}"]["kernel"]
            assert up.shape == (2, 2, features[i + 1], features[i])


def test_block_is_convolution_relu_batch_normalisation():
    """The first node, computed by hand in float64."""
    model = UNetPlusPlus((2, 3))
    variables = random_variables(model)
    image = np.random.default_rng(0).random((1, 4, 4, 3)).astype(np.float32)
    _, state = model.apply(variables, image, capture_intermediates=True)
    node = state["intermediates"]["x_0_0"]["__call__"][0]
    params, stats = (
        jax.tree.map(lambda a: np.asarray(a, np.float64), variables[name]["x_0_0"])
        for name in ("params", "batch_stats")
    )
    x = image.astype(np.float64)
    for k in range(2):
        conv, norm = params[f"Conv_{k}"], params[f"BatchNorm_{k}"]
        x = np.maximum(convolve(x, conv["kernel"]) + conv["bias"], 0)
        mean, var = stats[f"BatchNorm_{k}"]["mean"], stats[f"BatchNorm_{k}"]["var"]
        x = (x - mean) / np.sqrt(var + 1e-3) * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(node, x, rtol=1e-4, atol=1e-5)


def convolve(x, kernel):
    """3x3 convolution with zeros around, one output pixel at a time."""
    height, width = x.shape[1:3]
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    return np.stack(
        [
            np.stack(
                [
                    np.einsum("bhwc,hwcf->bf", padded[:, r : r + 3, c : c + 3], kernel)
                    for c in range(width)
                ],
                axis=1,
            )
            for r in range(height)
        ],
        axis=1,
    )


def test_training_moves_statistics():
    model = UNetPlusPlus(TINY_FEATURES, batch_norm_momentum=0.9)
    variables = random_variables(model)
    image = jax.random.uniform(jax.random.key(3), (2, 8, 8, 3))
    _, updated = run_training(model, variables, image)
    before, after = (
        v["batch_stats"]["x_0_0"]["BatchNorm_0"]["mean"] for v in (variables, updated)
    )
    assert np.abs(after - before).max() > 0


def test_combined_probability_is_the_mean_of_the_heads():
    head_logits = np.random.default_rng(0).normal(0, 5, (4, 2, 3, 3, 2))
    head_logits = jnp.asarray(head_logits, jnp.float32)
    probs = jax.nn.sigmoid(combine_heads(head_logits))
    expected = jax.nn.sigmoid(head_logits).mean(0)
    np.testing.assert_allclose(probs, expected, rtol=1e-5)


def reference_combined(head_logits):
    """Logits of the mean probability, and their gradients, between float64 logs."""
    heads = np.asarray(head_logits, np.float64)
    log_probs, log_complements = -np.logaddexp(0, -heads), -np.logaddexp(0, heads)
    yes, no = np.logaddexp.reduce(log_probs), np.logaddexp.reduce(log_complements)
    return yes - no, np.exp(log_probs + log_complements + np.log(len(heads)) - yes - no)


LOGITS = st.floats(-1e4, 1e4, width=32) | st.floats(-20, 20, width=32)


@hypothesis.given(hnp.arrays(np.float32, (3, 1, 1, 2, 1), elements=LOGITS))
@hypothesis.example(np.full((3, 1, 1, 2, 1), -100, np.float32))
@hypothesis.example(np.full((3, 1, 1, 2, 1), 100, np.float32))
@hypothesis.example(np.zeros((3, 1, 1, 2, 1), np.float32))
def test_combined_logits_are_exact_at_any_height(head_logits):
    expected, expected_grad = reference_combined(head_logits)
    logits, pull = jax.vjp(combine_heads, jnp.asarray(head_logits))
    (grad,) = pull(jnp.ones_like(logits))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-6)


def test_average_of_heads_is_their_mean_probability():
    head_logits = np.random.default_rng(0).normal(0, 5, (4, 2, 3, 3, 2))
    probs = average_heads(jnp.asarray(head_logits, jnp.float32))
    expected = (1 / (1 + np.exp(-head_logits))).mean(0)
    np.testing.assert_allclose(probs, expected, rtol=1e-5)


@pytest.mark.parametrize("head", [1, 2, 3, 4])
def test_pruned_network_equals_the_head_of_the_full_one(head):
    model = UNetPlusPlus((2, 3, 4, 5, 6))
    variables = random_variables(model)
    image = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
    full = jax.jit(model.apply)(variables, image)[head - 1]
    small, kept = prune(model, variables, head)
    alone = jax.jit(small.apply)(kept, image)
    assert alone.shape == (1, *full.shape)
    np.testing.assert_allclose(alone[0], full, rtol=1e-5, atol=1e-6)


def test_pruned_network_needs_exactly_the_kept_variables():
    model = UNetPlusPlus((2, 3, 4, 5, 6))
    variables = random_variables(model)
    sizes = []
    for head in range(1, 5):
        small, kept = prune(model, variables, head)
        image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
        wanted = jax.eval_shape(small.init, jax.random.key(0), image)
        shapes = jax.tree.map(lambda leaf: leaf.shape, (dict(wanted), kept))
        assert shapes[0] == shapes[1]
        sizes.append(count(kept))
    assert sizes == sorted(set(sizes))


def test_only_existing_heads_can_be_kept():
    model = UNetPlusPlus(TINY_FEATURES)
    for head in (0, 3):
        with pytest.raises(ValueError, match="the network has 1 to 2"):
            prune(model, random_variables(model), head)


def test_selected_targets_are_those_channels_of_the_heads():
    names = ("foreground", "boundary", "distance")
    model = UNetPlusPlus(TINY_FEATURES, num_targets=3)
    variables = random_variables(model)
    image = jax.random.uniform(jax.random.key(1), (1, 8, 8, 3))
    whole = model.apply(variables, image)
    chosen = select_targets(variables, names, ("distance", "foreground"))
    part = model.clone(num_targets=2).apply(chosen, image)
    np.testing.assert_allclose(part, whole[..., [2, 0]], rtol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8, 3), (1, 8, 8, 1), (1, 6, 8, 3), (1, 8, 9, 3)])
def test_images_that_do_not_fit_are_refused(shape):
    model = UNetPlusPlus(TINY_FEATURES)
    with pytest.raises(ValueError, match="image is"):
        model.init(jax.random.key(0), jnp.zeros(shape))


def test_bfloat16_keeps_parameters_and_statistics_in_float32():
    model = UNetPlusPlus(TINY_FEATURES, dtype=jnp.bfloat16)
    variables = random_variables(model)
    image = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3))
    logits, updated = run_training(model, variables, image)
    leaves = jax.tree.leaves((variables, updated, logits))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    exact, _ = run_training(model.clone(dtype=jnp.float32), variables, image)
    difference = np.abs(np.asarray(logits - exact))
    assert 0 < difference.max() < 0.2 * np.std(exact) + 0.1
