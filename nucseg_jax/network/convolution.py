"""The network's spatial operations, fast on CPU: 3x3 convolution, pooling, upsampling.

XLA's own gradients of these are slow on CPU, up to 30 times slower than the forward
pass. Here the convolution has a gradient of its own on CPU, and pooling and upsampling
are written so that their gradients are comparisons and matrix products on any device.
Arrays are [B, H, W, C]; kernels are [rows, columns, C, F], as Flax has them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax

Array = jax.Array
Arrays = tuple[Array, ...]

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Images of no more pixels than this are convolved as matrix products: XLA's convolution
# shares out too little work there, and has no fast kernels for bfloat16, for which
# processors have instructions that only products reach.
_SMALL_IMAGE = {jnp.dtype("float32"): 16**2, jnp.dtype("bfloat16"): 64**2}
# XLA's convolution of fewer channels than this is slow: joining the inputs first costs
# less than convolving each by itself.
_FEW_CHANNELS = 64
# A block of shifted copies of this size stays in the caches of a core while it is
# multiplied; products of fewer positions are too small to be fast.
_BLOCK_BYTES = 5 << 19
_LEAST_POSITIONS = 512


class Conv3x3(nn.Module):
    """3x3 convolution with zeros around, of several inputs as if concatenated.

    Its parameters are those of `nn.Conv` on the concatenation.
    """

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Sequence[Array]) -> Array:
        shape = (3, 3, sum(x.shape[-1] for x in inputs), self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        *inputs, kernel, bias = promote_dtype(*inputs, kernel, bias, dtype=self.dtype)
        return _add_bias(convolve(tuple(inputs), kernel), bias)


def convolve(inputs: Arrays, kernel: Array) -> Array:
    """Convolves the concatenation of `inputs`, zeros around.

    On CPU inputs of many channels are not concatenated, which would cost as much as a
    tenth of the convolution.

    Args:
      inputs: Each [B, H, W, C_k].
      kernel: [3, 3, sum of C_k, F], same dtype.

    Returns:
      [B, H, W, F].
    """
    return lax.platform_dependent(
        inputs, kernel, cpu=_convolve_on_cpu, default=_convolve_joined
    )


def _convolve_on_cpu(inputs: Arrays, kernel: Array) -> Array:
    if max(x.shape[-1] for x in inputs) < _FEW_CHANNELS:
        inputs = (jnp.concatenate(inputs, axis=-1),)
    return _convolve_parts(inputs, kernel)


def _convolve_joined(inputs: Arrays, kernel: Array) -> Array:
    return _direct(jnp.concatenate(inputs, axis=-1), kernel)


@jax.custom_vjp
def _convolve_parts(inputs: Arrays, kernel: Array) -> Array:
    kernels = _split_kernel(kernel, inputs)
    return functools.reduce(jnp.add, map(_convolve_one, inputs, kernels))


def _forward(inputs: Arrays, kernel: Array) -> tuple[Array, tuple[Arrays, Array]]:
    # The gradient reads the result several times: without the barrier, XLA would add
    # the parts anew each time instead of keeping their sum.
    result = lax.optimization_barrier(_convolve_parts(inputs, kernel))
    return result, (inputs, kernel)


def _backward(residuals: tuple[Arrays, Array], grad: Array) -> tuple[Arrays, Array]:
    inputs, kernel = residuals
    # The gradient of an input is a convolution with its kernel turned by 180 degrees.
    turned = kernel[::-1, ::-1]
    input_grads = tuple(
        _convolve_one(grad, part.swapaxes(2, 3))
        for part in _split_kernel(turned, inputs)
    )
    return input_grads, kernel_gradient(inputs, grad)


_convolve_parts.defvjp(_forward, _backward)


def _split_kernel(kernel: Array, inputs: Arrays) -> Sequence[Array]:
    """The part of the kernel [3, 3, C, F] that each input meets."""
    sizes = [x.shape[-1] for x in inputs]
    return lax.split(kernel, sizes, axis=2)


def _convolve_one(image: Array, kernel: Array) -> Array:
    _, height, width, _ = image.shape
    if height * width > _SMALL_IMAGE[image.dtype]:
        return _direct(image, kernel)
    return _by_products(image, kernel)


def _by_products(image: Array, kernel: Array) -> Array:
    blocks = _Blocks(image.shape, image.dtype.itemsize)
    padded = _pad(image)
    flat = kernel.reshape(-1, kernel.shape[-1])

    def multiply_block(_: None, block: Array) -> tuple[None, Array]:
        copies = _shifted_copies(blocks.window(padded, block))
        sums = lax.dot_general(
            copies, flat, (((3,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        return None, sums.astype(image.dtype)

    _, result = lax.scan(multiply_block, None, jnp.arange(blocks.number))
    return result.reshape(*image.shape[:3], kernel.shape[-1])


def _direct(image: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=_DIMENSIONS
    )


def kernel_gradient(inputs: Arrays, grad: Array) -> Array:
    """Computes the gradient of a 3x3 convolution's kernel by matrix products.

    The nine shifted copies of the inputs or of `grad`, whichever has fewer channels,
    are multiplied with the other one, block by block of rows.

    Args:
      inputs: Each [B, H, W, C_k].
      grad: Gradient of the convolution's result, [B, H, W, F].

    Returns:
      [3, 3, sum of C_k, F], of the inputs' dtype, summed in float32.
    """
    if grad.shape[-1] <= sum(x.shape[-1] for x in inputs):
        # Shifting the gradient one way is shifting the inputs the other way.
        sums = _sum_of_products(grad, inputs)[::-1, ::-1].swapaxes(2, 3)
    else:
        sums = _sum_of_products(jnp.concatenate(inputs, axis=-1), (grad,))
    return sums.astype(grad.dtype)


def _sum_of_products(shifted: Array, fixed: Arrays) -> Array:
    """Sums shifted[h + r - 1, w + c - 1]^T fixed[h, w] over positions: [3, 3, S, T]."""
    channels = shifted.shape[-1]
    blocks = _Blocks(shifted.shape, shifted.dtype.itemsize)
    padded = _pad(shifted)

    def add_block(total: Array, block: Array) -> tuple[Array, None]:
        copies = _shifted_copies(blocks.window(padded, block))
        parts = [blocks.part(x, block) for x in fixed]
        return total + _product(copies, jnp.concatenate(parts, axis=-1)), None

    total = jnp.zeros((9 * channels, sum(x.shape[-1] for x in fixed)), jnp.float32)
    total, _ = lax.scan(add_block, total, jnp.arange(blocks.number))
    return total.reshape(3, 3, channels, -1)


class _Blocks:
    """Cuts a batch of images into blocks of whole images, or of rows of one image.

    Attributes:
      number: How many blocks; they lie in the order of memory.
    """

    def __init__(self, shape: tuple[int, ...], itemsize: int):
        batch, height, width, channels = shape
        positions = max(_LEAST_POSITIONS, _BLOCK_BYTES // (9 * channels * itemsize))
        rows = _largest_divisor(height, positions // width)
        whole = rows == height
        images = _largest_divisor(batch, positions // (height * width)) if whole else 1
        self._size = (images, rows, width)
        self._blocks_down = height // rows
        self.number = batch // images * self._blocks_down

    def part(self, image: Array, block: Array) -> Array:
        """What a block holds of [B, H, W, C]."""
        return self._slice(image, block, border=0)

    def window(self, padded: Array, block: Array) -> Array:
        """The same of [B, H + 2, W + 2, C], with a border of one pixel around it."""
        return self._slice(padded, block, border=2)

    def _slice(self, image: Array, block: Array, *, border: int) -> Array:
        images, rows, width = self._size
        first_image = block // self._blocks_down * images
        first_row = block % self._blocks_down * rows
        size = (images, rows + border, width + border, image.shape[-1])
        return lax.dynamic_slice(image, (first_image, first_row, 0, 0), size)


def _largest_divisor(number: int, limit: int) -> int:
    return max(
        d for d in range(1, number + 1) if number % d == 0 and d <= max(1, limit)
    )


def _pad(image: Array) -> Array:
    return jnp.pad(image, [(0, 0), (1, 1), (1, 1), (0, 0)])


def _shifted_copies(padded: Array) -> Array:
    """[B, H + 2, W + 2, C] -> [B, H, W, 9 C], shifts in the order of a kernel."""
    height, width = padded.shape[1] - 2, padded.shape[2] - 2
    return jnp.concatenate(
        [padded[:, r : r + height, c : c + width] for r in range(3) for c in range(3)],
        axis=-1,
    )


def _product(left: Array, right: Array) -> Array:
    """Sums left^T right over all positions, in float32."""
    positions = tuple(range(left.ndim - 1))
    return lax.dot_general(
        left,
        right,
        ((positions, positions), ((), ())),
        preferred_element_type=jnp.float32,
    )


def _add_bias(image: Array, bias: Array) -> Array:
    return image + lax.broadcast_in_dim(bias, image.shape, (3,))


def max_pool(image: Array) -> Array:
    """Takes the maximum of each 2x2 square; equal values share the gradient."""
    taller = jnp.maximum(image[:, ::2], image[:, 1::2])
    return jnp.maximum(taller[:, :, ::2], taller[:, :, 1::2])


class Conv1x1(nn.Module):
    """1x1 convolution as one matrix product; its parameters are those of `nn.Conv`.

    XLA's gradient of the convolution would first transpose the whole image.
    """

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, image: Array) -> Array:
        batch, height, width, channels = image.shape
        shape = (1, 1, channels, self.features)
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        image, kernel, bias = promote_dtype(image, kernel, bias, dtype=self.dtype)
        product = image.reshape(-1, channels) @ kernel[0, 0]
        return _add_bias(product.reshape(batch, height, width, self.features), bias)


class Upsample(nn.Module):
    """2x2 transposed convolution with stride 2, as `nn.ConvTranspose` computes it.

    Its squares do not overlap, so it is one matrix product and a rearrangement.
    """

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, image: Array) -> Array:
        shape = (2, 2, image.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        image, kernel, bias = promote_dtype(image, kernel, bias, dtype=self.dtype)
        return _add_bias(upsample(image, kernel), bias)


def upsample(image: Array, kernel: Array) -> Array:
    """Makes squares of pixels: [B, H, W, C], [2, 2, C, F] -> [B, 2H, 2W, F]."""
    batch, height, width, channels = image.shape
    features = kernel.shape[-1]
    # Plain matrices: XLA's CPU products of higher rank take twice as long.
    matrix = kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(channels, 4 * features)
    squares = image.reshape(-1, channels) @ matrix
    squares = squares.reshape(batch, height, width, 2, 2 * features)
    return squares.swapaxes(2, 3).reshape(batch, 2 * height, 2 * width, features)
