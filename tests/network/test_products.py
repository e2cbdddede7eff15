import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from nucseg_jax.network import products


def test_one_pixel_kernel_gradient_by_hand():
    """A single bright pixel meets the gradient of its neighbours, one a tap."""
    image = jnp.zeros((1, 5, 5, 1)).at[0, 2, 2, 0].set(1.0)
    grad = jnp.arange(25.0).reshape(1, 5, 5, 1)
    result = products.kernel_gradient((image,), grad)[..., 0, 0]
    expected = grad[0, 1:4, 1:4, 0][::-1, ::-1]
    np.testing.assert_array_equal(result, expected)


def test_kernel_gradient_of_squares_by_hand():
    """Tap [r, c] has met every pixel, and with it pixel [r, c] of its square."""
    image = jnp.zeros((1, 2, 3, 2)).at[0, 1, 2, 1].set(1.0)
    grad = jnp.arange(48.0).reshape(1, 4, 6, 2)
    result = products.upsample_kernel_gradient(image, grad)
    np.testing.assert_array_equal(result[:, :, 0], 0)
    np.testing.assert_array_equal(result[:, :, 1], grad[0, 2:4, 4:6])


@pytest.mark.parametrize(
    "shape", [(2, 256, 256, 64), (10, 16, 16, 1024), (3, 7, 11, 5), (2, 512, 8, 32)]
)
def test_blocks_are_the_whole_in_order(shape):
    """Put one after the other, the blocks are the batch; each window has its border."""
    blocks = products._Blocks(shape, 4)
    image = np.arange(np.prod(shape[:3]), dtype=np.float32).reshape(*shape[:3], 1)
    padded = np.pad(image, [(0, 0), (1, 1), (1, 1), (0, 0)])
    parts = [blocks.part(image, k) for k in range(blocks.number)]
    np.testing.assert_array_equal(np.concatenate(parts, None), image.ravel())
    for k, part in enumerate(parts):
        window = blocks.window(padded, k)
        np.testing.assert_array_equal(window[:, 1:-1, 1:-1], part)


@pytest.mark.parametrize(
    "dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 0.02)]
)
@pytest.mark.parametrize("shape", [(3, 16, 16, 6), (5, 8, 12, 96), (2, 64, 64, 256)])
def test_products_are_the_convolution(shape, dtype, tolerance):
    """Small images take the way of matrix products, in blocks; XLA's is the truth."""
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=shape), dtype)
    kernel = jnp.asarray(rng.normal(size=(3, 3, shape[-1], 7)), dtype)
    expected = lax.conv_general_dilated(
        image.astype(jnp.float32),
        kernel.astype(jnp.float32),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    result = products.convolve(image, kernel)
    assert result.dtype == dtype
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(
        result.astype(jnp.float32), expected, atol=tolerance * scale
    )
