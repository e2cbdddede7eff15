import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from nucseg_jax.network import convolution, onednn

# Batch, height, width, channels of each input, features: more and fewer features than
# channels, blocks of rows and of whole images, sizes that few numbers divide.
CASES = {
    "one input": (2, 32, 32, (3,), 4),
    "several inputs": (2, 32, 24, (4, 4, 4), 4),
    "more features than channels": (2, 18, 20, (2, 3), 16),
    "small image": (3, 4, 4, (8,), 8),
    "odd sizes": (1, 17, 19, (5, 2), 3),
    "inputs that are not joined": (1, 20, 24, (64, 5, 64), 8),
    "many rows": (1, 96, 128, (6,), 6),
}


@pytest.fixture(params=["oneDNN", "oneDNN forward", "XLA"], autouse=True)
def way(request, monkeypatch):
    """The ways that a CPU may go."""
    if request.param == "XLA":
        monkeypatch.setattr(onednn, "supports", lambda dtype: False)
    elif not onednn.supports("float32"):
        pytest.skip(onednn.why_not())
    # Right on every processor, though it is chosen on those alone where it is fast.
    gradients = onednn.supports if request.param == "oneDNN" else lambda dtype: False
    monkeypatch.setattr(onednn, "supports_gradients", gradients)
    yield
    jax.clear_caches()


def draw(case, dtype=np.float32):
    batch, height, width, channels, features = CASES[case]
    rng = np.random.default_rng(0)
    inputs = tuple(
        jnp.asarray(rng.normal(size=(batch, height, width, c)), dtype) for c in channels
    )
    kernel = (
        rng.normal(size=(3, 3, sum(channels), features)) / (9 * sum(channels)) ** 0.5
    )
    bias = rng.normal(size=features)
    return inputs, jnp.asarray(kernel, dtype), jnp.asarray(bias, dtype)


def plain(inputs, kernel, bias):
    """XLA's own convolution of the concatenation, differentiated by XLA."""
    result = lax.conv_general_dilated(
        jnp.concatenate(inputs, axis=-1),
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    return result + bias[None, None, None]


def gradients(function, *args):
    def weighted(*args):
        result = function(*args).astype(jnp.float32)
        return jnp.sum(result * jnp.cos(jnp.arange(result.size)).reshape(result.shape))

    return jax.jit(jax.grad(weighted, argnums=(0, 1, 2)))(*args)


@pytest.mark.parametrize("case", CASES)
def test_convolution_equals_that_of_xla(case):
    args = draw(case)
    result = jax.jit(convolution.convolve)(*args)
    np.testing.assert_allclose(result, plain(*args), atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_those_of_xla(case):
    args = draw(case)
    ours = gradients(convolution.convolve, *args)
    theirs = gradients(plain, *args)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()) + 1e-5)


def draw_affine(case):
    """Scales of either sign, and shifts, which zeros around must not be given."""
    rng = np.random.default_rng(1)
    features = CASES[case][-1]
    return [jnp.asarray(rng.normal(size=features), jnp.float32) for _ in range(2)]


def plain_affine(inputs, kernel, bias, scale, shift):
    result = jnp.maximum(plain(inputs, kernel, bias), 0)
    return result * scale[None, None, None] + shift[None, None, None]


@pytest.mark.parametrize("case", CASES)
def test_relu_and_affine_map_follow_the_convolution(case):
    args = *draw(case), *draw_affine(case)
    result = jax.jit(convolution.convolve_relu_affine)(*args)
    np.testing.assert_allclose(result, plain_affine(*args), atol=2e-5)


def test_relu_and_affine_map_have_gradients():
    args = *draw("several inputs"), *draw_affine("several inputs")
    ours = gradients(convolution.convolve_relu_affine, *args)
    theirs = gradients(plain_affine, *args)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()) + 1e-5)


def test_relu_and_affine_map_in_bfloat16():
    args, affine = draw("several inputs", jnp.bfloat16), draw_affine("several inputs")
    exact = [jax.tree.map(lambda a: a.astype(jnp.float32), x) for x in args]
    result = jax.jit(convolution.convolve_relu_affine)(*args, *affine)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        result.astype(jnp.float32), plain_affine(*exact, *affine), atol=0.06, rtol=0.02
    )


def test_gradients_are_those_of_the_value():
    args = draw("odd sizes")
    check_grads(convolution.convolve, args, order=1, modes=["rev"], eps=1e-2)


@pytest.mark.parametrize("case", ["several inputs", "more features than channels"])
def test_products_of_bfloat16_are_summed_in_float32(case):
    """Rounded is the result, once for each input: no more than that is allowed."""
    args = draw(case, jnp.bfloat16)
    exact = [jax.tree.map(lambda a: a.astype(jnp.float32), x) for x in args]
    result = jax.jit(convolution.convolve)(*args)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        result.astype(jnp.float32), plain(*exact), atol=0.03, rtol=0.02
    )
    grad = gradients(convolution.convolve, *args)[1]
    expected = gradients(plain, *exact)[1]
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(grad.astype(jnp.float32), expected, atol=0.02 * scale)


@pytest.mark.parametrize(
    "ours, theirs, shape",
    [
        (
            convolution.Conv3x3(6, dtype=jnp.float32),
            nn.Conv(6, (3, 3)),
            (2, 8, 8, 4),
        ),
        (
            convolution.Conv1x1(2, dtype=jnp.float32),
            nn.Conv(2, (1, 1)),
            (2, 8, 8, 4),
        ),
        (
            convolution.Upsample(5, dtype=jnp.float32),
            nn.ConvTranspose(5, (2, 2), strides=(2, 2)),
            (2, 6, 8, 4),
        ),
    ],
    ids=["Conv3x3", "Conv1x1", "Upsample"],
)
def test_modules_are_those_of_flax_with_the_same_parameters(ours, theirs, shape):
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=shape), jnp.float32)
    given = [image] if isinstance(ours, convolution.Conv3x3) else image
    wanted = jax.eval_shape(theirs.init, jax.random.key(0), image)
    assert wanted == jax.eval_shape(ours.init, jax.random.key(0), given)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), wanted
    )
    np.testing.assert_allclose(
        jax.jit(ours.apply)(variables, given),
        jax.jit(theirs.apply)(variables, image),
        rtol=1e-5,
        atol=2e-5,
    )


def test_pooling_takes_maxima_and_shares_the_gradient_of_equals():
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 8, 3)))
    expected = nn.max_pool(image, (2, 2), strides=(2, 2))
    np.testing.assert_array_equal(convolution.max_pool(image), expected)
    grad = jax.grad(lambda x: convolution.max_pool(x).sum())
    np.testing.assert_array_equal(grad(jnp.ones((1, 2, 2, 1))), 0.25)
    plain_grad = jax.grad(lambda x: nn.max_pool(x, (2, 2), strides=(2, 2)).sum())
    np.testing.assert_array_equal(grad(image), plain_grad(image))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pooling_shares_among_equals_of_a_column_first(dtype):
    """As the gradients of the two maxima do it that pooling consists of."""

    def pool(image):
        taller = jnp.maximum(image[:, ::2], image[:, 1::2])
        return jnp.maximum(taller[:, :, ::2], taller[:, :, 1::2])

    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.integers(0, 3, (2, 12, 8, 5)), dtype)
    grad = jnp.asarray(rng.normal(size=(2, 6, 4, 5)), dtype)
    (ours,) = jax.vjp(convolution.max_pool, image)[1](grad)
    (theirs,) = jax.vjp(pool, image)[1](grad)
    assert ours.dtype == dtype
    np.testing.assert_array_equal(ours, theirs)


def test_upsampling_has_the_gradients_of_the_transposed_convolution():
    rng = np.random.default_rng(0)
    shapes = (2, 5, 6, 4), (2, 2, 4, 3), (3,)
    args = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]

    def transposed(image, kernel, bias):
        return (
            lax.conv_transpose(image, kernel, (2, 2), "SAME") + bias[None, None, None]
        )

    ours = gradients(convolution.upsample, *args)
    theirs = gradients(transposed, *args)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
