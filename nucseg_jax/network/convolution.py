"""The network's spatial operations, fast on CPU: 3x3 convolution, pooling, upsampling.

On CPU they go through oneDNN where it is installed, elsewhere through forms that XLA
does well; on GPU and TPU through XLA's own. XLA's gradients of these are slow on CPU,
up to 30 times slower than the forward pass: the convolution has a gradient of its own
there, and those of pooling and upsampling are comparisons and matrix products on any
device. Arrays are [B, H, W, C]; kernels are [rows, columns, C, F], as Flax has them.
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

from nucseg_jax.network import onednn, products
from nucseg_jax.network.sharding import over_batch

Array = jax.Array
Arrays = tuple[Array, ...]

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Without oneDNN, images of no more pixels than this are convolved as matrix products:
# XLA's convolution shares out too little work there, and has no fast kernels for
# bfloat16, for which processors have instructions that only products reach.
_SMALL_IMAGE = {jnp.dtype("float32"): 16**2, jnp.dtype("bfloat16"): 64**2}
# XLA's convolution of fewer channels than this is slow: joining the inputs first costs
# less than convolving each by itself.
_FEW_CHANNELS = 64


class Conv3x3(nn.Module):
    """3x3 convolution with zeros around, of several inputs as if concatenated.

    Its parameters are those of `nn.Conv` on the concatenation. If a scale and a shift
    [features] are given, what `relu_affine` does with them follows.
    """

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Sequence[Array], *affine: Array) -> Array:
        shape = (3, 3, sum(x.shape[-1] for x in inputs), self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        *inputs, kernel, bias = promote_dtype(*inputs, kernel, bias, dtype=self.dtype)
        if affine:
            return convolve_relu_affine(tuple(inputs), kernel, bias, *affine)
        return convolve(tuple(inputs), kernel, bias)


def relu_affine(image: Array, scale: Array, shift: Array) -> Array:
    """max(image, 0) * scale + shift.

    Args:
      image: [B, H, W, F].
      scale: float32 [F].
      shift: float32 [F].

    Returns:
      [B, H, W, F], dtype of the image.
    """
    scale, shift = (lax.broadcast_in_dim(x, image.shape, (3,)) for x in (scale, shift))
    return (nn.relu(image) * scale + shift).astype(image.dtype)


def convolve_relu_affine(
    inputs: Arrays, kernel: Array, bias: Array, scale: Array, shift: Array
) -> Array:
    """Computes `relu_affine(convolve(inputs, kernel, bias), scale, shift)`.

    On CPU in one go: to read and write the image once more would take a tenth of the
    convolution's time, and its memory.
    """
    return lax.platform_dependent(
        inputs,
        kernel,
        bias,
        scale,
        shift,
        cpu=_relu_affine_on_cpu,
        default=_relu_affine_apart,
    )


def _relu_affine_apart(
    inputs: Arrays, kernel: Array, bias: Array, scale: Array, shift: Array
) -> Array:
    return relu_affine(convolve(inputs, kernel, bias), scale, shift)


@jax.custom_vjp
def _relu_affine_on_cpu(
    inputs: Arrays, kernel: Array, bias: Array, scale: Array, shift: Array
) -> Array:
    if onednn.supports(str(kernel.dtype)):
        call = over_batch(lambda x, p: onednn.convolve(x, *p))
        return call(inputs, (kernel, bias, scale, shift))
    return _relu_affine_apart(inputs, kernel, bias, scale, shift)


_relu_affine_on_cpu.defvjp(
    lambda *args: (_relu_affine_on_cpu(*args), args),
    lambda args, grad: jax.vjp(_relu_affine_apart, *args)[1](grad),
)


def convolve(inputs: Arrays, kernel: Array, bias: Array) -> Array:
    """Convolves the concatenation of `inputs`, zeros around, and adds a bias.

    On CPU the inputs are not concatenated, which would cost as much as a tenth of the
    convolution.

    Args:
      inputs: Each [B, H, W, C_k].
      kernel: [3, 3, sum of C_k, F], same dtype.
      bias: [F], same dtype.

    Returns:
      [B, H, W, F].
    """
    return lax.platform_dependent(
        inputs, kernel, bias, cpu=_convolve_on_cpu, default=_convolve_joined
    )


def _convolve_joined(inputs: Arrays, kernel: Array, bias: Array) -> Array:
    return _add_bias(_direct(jnp.concatenate(inputs, axis=-1), kernel), bias)


@jax.custom_vjp
def _convolve_on_cpu(inputs: Arrays, kernel: Array, bias: Array) -> Array:
    if onednn.supports(str(kernel.dtype)):
        return over_batch(lambda x, p: onednn.convolve(x, *p))(inputs, (kernel, bias))
    if max(x.shape[-1] for x in inputs) < _FEW_CHANNELS:
        inputs = (jnp.concatenate(inputs, axis=-1),)
    kernels = _split_kernel(kernel, inputs)
    parts = map(_convolve_by_xla, inputs, kernels)
    return _add_bias(functools.reduce(jnp.add, parts), bias)


def _forward(
    inputs: Arrays, kernel: Array, bias: Array
) -> tuple[Array, tuple[Arrays, Array]]:
    # The gradient reads the result several times: without the barrier, XLA would add
    # the parts anew each time instead of keeping their sum.
    result = lax.optimization_barrier(_convolve_on_cpu(inputs, kernel, bias))
    return result, (inputs, kernel)


def _backward(
    residuals: tuple[Arrays, Array], grad: Array
) -> tuple[Arrays, Array, Array]:
    inputs, kernel = residuals
    compute = over_batch(_gradients, with_sums=True)
    input_grads, (kernel_grad, bias_grad) = compute((inputs, grad), kernel)
    return input_grads, kernel_grad.astype(grad.dtype), bias_grad.astype(grad.dtype)


_convolve_on_cpu.defvjp(_forward, _backward)


def _gradients(
    inputs_and_grad: tuple[Arrays, Array], kernel: Array
) -> tuple[Arrays, tuple[Array, Array]]:
    """Gradients of the inputs, and of kernel and bias in float32."""
    inputs, grad = inputs_and_grad
    if onednn.supports_gradients(str(grad.dtype)):
        return onednn.gradients(inputs, kernel, grad)
    # The gradient of an input is a convolution with its kernel turned by 180 degrees.
    turned = kernel[::-1, ::-1]
    input_grads = tuple(
        _convolve_one(grad, part.swapaxes(2, 3))
        for part in _split_kernel(turned, inputs)
    )
    bias_grad = jnp.sum(grad, axis=(0, 1, 2), dtype=jnp.float32)
    return input_grads, (products.kernel_gradient(inputs, grad), bias_grad)


def _split_kernel(kernel: Array, inputs: Arrays) -> Sequence[Array]:
    """The part of the kernel [3, 3, C, F] that each input meets."""
    sizes = [x.shape[-1] for x in inputs]
    return lax.split(kernel, sizes, axis=2)


def _convolve_one(image: Array, kernel: Array) -> Array:
    if onednn.supports(str(kernel.dtype)):
        return onednn.convolve([image], kernel, jnp.zeros_like(kernel[0, 0, 0]))
    return _convolve_by_xla(image, kernel)


def _convolve_by_xla(image: Array, kernel: Array) -> Array:
    _, height, width, _ = image.shape
    if height * width > _SMALL_IMAGE[image.dtype]:
        return _direct(image, kernel)
    return products.convolve(image, kernel)


def _direct(image: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=_DIMENSIONS
    )


def _add_bias(image: Array, bias: Array) -> Array:
    return image + lax.broadcast_in_dim(bias, image.shape, (3,))


@jax.custom_vjp
def max_pool(image: Array) -> Array:
    """Takes the maximum of each 2x2 square; equal values share the gradient."""
    taller = jnp.maximum(image[:, ::2], image[:, 1::2])
    return jnp.maximum(taller[:, :, ::2], taller[:, :, 1::2])


def _max_pool_backward(image: Array, grad: Array) -> tuple[Array]:
    # The gradients of the slices above are images of zeros but for every other pixel,
    # to be added up: on CPU that takes two to seven times as long as comparing.
    batch, height, width, channels = image.shape
    rows = image.reshape(batch, height // 2, 2, width, channels)
    taller = jnp.maximum(rows[:, :, 0], rows[:, :, 1])
    pairs = taller.reshape(batch, height // 2, width // 2, 2, channels)
    grad = _share(pairs, grad, axis=3).reshape(taller.shape)
    return (_share(rows, grad, axis=2).reshape(image.shape),)


max_pool.defvjp(lambda image: (max_pool(image), image), _max_pool_backward)


def _share(pairs: Array, grad: Array, axis: int) -> Array:
    """Gives the gradient of the maximum to the larger of two, or half of it to each."""
    first, second = (lax.index_in_dim(pairs, k, axis, keepdims=True) for k in (0, 1))
    grad = jnp.expand_dims(grad, axis)
    grad = jnp.where(first == second, grad / 2, grad)
    return jnp.where(pairs == jnp.maximum(first, second), grad, 0)


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
        return upsample(image, kernel, bias)


def upsample(image: Array, kernel: Array, bias: Array) -> Array:
    """Makes squares of pixels and adds a bias.

    Args:
      image: [B, H, W, C].
      kernel: [2, 2, C, F], same dtype; turned by 180 degrees, as Flax has it.
      bias: [F], same dtype.

    Returns:
      [B, 2H, 2W, F].
    """
    return lax.platform_dependent(
        image, kernel, bias, cpu=_upsample_on_cpu, default=_upsample_by_product
    )


@jax.custom_vjp
def _upsample_on_cpu(image: Array, kernel: Array, bias: Array) -> Array:
    if onednn.supports(str(kernel.dtype)):
        call = over_batch(lambda x, p: onednn.upsample(x, *p))
        return call(image, (kernel[::-1, ::-1], bias))
    return _upsample_by_product(image, kernel, bias)


def _upsample_backward(
    residuals: tuple[Array, Array, Array], grad: Array
) -> tuple[Array, Array, Array]:
    image, kernel, _ = residuals
    dtype = grad.dtype
    if not onednn.supports_gradients(str(dtype)):
        return jax.vjp(_upsample_by_product, *residuals)[1](grad)
    compute = over_batch(_upsample_gradients, with_sums=True)
    turned = kernel[::-1, ::-1]
    image_grad, (kernel_grad, bias_grad) = compute((image, grad), turned)
    return image_grad, kernel_grad[::-1, ::-1].astype(dtype), bias_grad.astype(dtype)


def _upsample_gradients(
    image_and_grad: tuple[Array, Array], kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    """Gradients of the image, and of kernel and bias in float32."""
    image, grad = image_and_grad
    # oneDNN's own gradient of this kernel takes up to five times as long as products.
    kernel_grad = products.upsample_kernel_gradient(image, grad)
    bias_grad = jnp.sum(grad, axis=(0, 1, 2), dtype=jnp.float32)
    return onednn.upsample_image_gradient(kernel, grad), (kernel_grad, bias_grad)


_upsample_on_cpu.defvjp(
    lambda *args: (_upsample_on_cpu(*args), args), _upsample_backward
)


def _upsample_by_product(image: Array, kernel: Array, bias: Array) -> Array:
    batch, height, width, channels = image.shape
    features = kernel.shape[-1]
    # Plain matrices: XLA's CPU products of higher rank take twice as long.
    matrix = kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(channels, 4 * features)
    squares = image.reshape(-1, channels) @ matrix
    squares = squares.reshape(batch, height, width, 2, 2 * features)
    joined = squares.swapaxes(2, 3).reshape(batch, 2 * height, 2 * width, features)
    return _add_bias(joined, bias)
