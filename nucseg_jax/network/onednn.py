"""Convolution and upsampling by oneDNN, the library behind PyTorch's on CPU.

XLA's own CPU convolution reaches a third to nine tenths of oneDNN's speed, least with
few channels, and its kernel gradient less. oneDNN comes as a wheel for Linux on x86-64.
`supports` says no elsewhere, and for dtypes that the processor has no instructions for;
the caller takes XLA's way then.

Arrays are [B, H, W, C], kernels [rows, columns, C, F].
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from nucseg_jax.network import onednn_library, xla_ffi
from nucseg_jax.network.onednn_library import OneDnnError
from nucseg_jax.network.onednn_program import (
    BIAS,
    BIAS_GRAD,
    DTYPES,
    KERNEL,
    KERNEL_GRAD,
    RESULT,
    RESULT_GRAD,
    SCALE,
    SHIFT,
    SOURCE,
    SOURCE_GRAD,
    Layer,
    Program,
    Size,
)

Array = jax.Array
Build = Callable[[], Program]

# Instructions (`dnnl_cpu_isa_t`) without which XLA's way with a dtype, or ours with the
# gradients, is faster.
_NEEDED = {"float32": 0x0, "bfloat16": 0xE7}  # Any; AVX-512 with bfloat16.
_NEEDED_FOR_GRADIENTS = 0x27  # AVX-512.


def convolve(
    inputs: Sequence[Array], kernel: Array, bias: Array, *affine: Array
) -> Array:
    """Convolves the concatenation of `inputs` with a 3x3 kernel, zeros around.

    Args:
      inputs: Each [B, H, W, C_k].
      kernel: [3, 3, sum of C_k, F].
      bias: [F]. All of one dtype that is supported.
      *affine: Nothing, or a scale and a shift, float32 [F]: what is below zero becomes
        zero, then all is multiplied and added to.

    Returns:
      [B, H, W, F].
    """
    layers = _convolutions(inputs, bias.size)
    kernels = _split(kernel, layers)
    dtype, ends_affine = str(bias.dtype), bool(affine)
    name = _register(
        "convolve_relu_affine" if ends_affine else "convolve",
        layers,
        dtype,
        lambda: _convolve(layers, dtype, ends_affine),
    )
    result = jax.ShapeDtypeStruct((*layers[0].size, bias.size), dtype)
    return _call(name, result, [*inputs, *kernels, bias, *affine])


def gradients(
    inputs: Sequence[Array], kernel: Array, grad: Array
) -> tuple[tuple[Array, ...], tuple[Array, Array]]:
    """Computes the gradients of `convolve`, all in one call.

    XLA would run other operations beside a second call, and both would take longer
    than one after the other: oneDNN's threads wait for the slowest.

    Args:
      inputs: Those of `convolve`, each [B, H, W, C_k].
      kernel: That of `convolve`, [3, 3, sum of C_k, F].
      grad: Gradient of its result, [B, H, W, F].

    Returns:
      Those of the inputs, [B, H, W, C_k] each; and in float32 that of the kernel,
      [3, 3, sum of C_k, F], and that of the bias, [F].
    """
    layers = _convolutions(inputs, grad.shape[-1])
    kernels, dtype = _split(kernel, layers), str(grad.dtype)
    name = _register("gradients", layers, dtype, lambda: _gradients(layers, dtype))
    results = [jax.ShapeDtypeStruct(x.shape, dtype) for x in inputs]
    results += [jax.ShapeDtypeStruct(x.shape, np.float32) for x in kernels]
    results += [jax.ShapeDtypeStruct(grad.shape[-1:], np.float32)]
    *grads, bias_grad = _call(name, results, [*inputs, *kernels, grad])
    input_grads, kernel_grads = grads[: len(layers)], grads[len(layers) :]
    kernel_grad = jax.lax.concatenate(kernel_grads, dimension=2)
    return tuple(input_grads), (kernel_grad, bias_grad)


def upsample(image: Array, kernel: Array, bias: Array) -> Array:
    """Makes squares of pixels: [B, H, W, C], [2, 2, C, F] -> [B, 2H, 2W, F].

    Tap [r, c] of the kernel makes pixel [r, c] of each square.
    """
    layer = Layer("deconvolution", _size(image), image.shape[-1], bias.size)
    dtype = str(bias.dtype)
    name = _register("upsample", [layer], dtype, lambda: _upsample(layer, dtype))
    result = jax.ShapeDtypeStruct((*layer.result_size, bias.size), dtype)
    return _call(name, result, [image, kernel, bias])


def upsample_image_gradient(kernel: Array, grad: Array) -> Array:
    """Computes the gradient of the image of `upsample`.

    Args:
      kernel: That of `upsample`, [2, 2, C, F].
      grad: Gradient of its result, [B, 2H, 2W, F].

    Returns:
      [B, H, W, C].
    """
    batch, height, width, features = grad.shape
    size, channels = (batch, height // 2, width // 2), kernel.shape[2]
    layer = Layer("deconvolution", size, channels, features)
    dtype = str(grad.dtype)
    name = _register(
        "upsample_gradient", [layer], dtype, lambda: _upsample_gradient(layer, dtype)
    )
    result = jax.ShapeDtypeStruct((*size, channels), dtype)
    return _call(name, result, [kernel, grad])


@functools.cache
def supports(dtype: str) -> bool:
    """Whether oneDNN is here and has fast kernels of this dtype for this processor."""
    if dtype not in DTYPES or why_not():
        return False
    if not onednn_library.load().has_instructions(_NEEDED[dtype]):
        return False
    try:
        _convolve([Layer("convolution", (1, 8, 8), 16, 16)], dtype, ends_affine=True)
    except OneDnnError:
        return False
    return True


@functools.cache
def supports_gradients(dtype: str) -> bool:
    """Whether the gradients are fast on this processor, too."""
    if not supports(dtype):
        return False
    return onednn_library.load().has_instructions(_NEEDED_FOR_GRADIENTS)


@functools.cache
def why_not() -> str:
    """Says why oneDNN cannot be used on this machine; empty if it can."""
    package = onednn_library.PACKAGE
    try:
        onednn_library.load()
    except importlib.metadata.PackageNotFoundError:
        return f"{package} is not installed"
    except (OSError, OneDnnError) as error:
        return f"{package} cannot be loaded: {error}"
    return ""


def _convolutions(inputs: Sequence[Array], features: int) -> list[Layer]:
    return [Layer("convolution", _size(x), x.shape[-1], features) for x in inputs]


def _split(kernel: Array, layers: Sequence[Layer]) -> Sequence[Array]:
    return jax.lax.split(kernel, [layer.channels for layer in layers], axis=2)


def _size(image: Array) -> Size:
    batch, height, width, _ = image.shape
    return batch, height, width


def _convolve(
    layers: Sequence[Layer], dtype: str, ends_affine: bool = False
) -> Program:
    """Convolves one input after the other, each adding to the result so far."""
    program, number = Program(dtype), len(layers)
    bias = 2 * number
    affine = {SCALE: bias + 1, SHIFT: bias + 2} if ends_affine else {}
    for k, layer in enumerate(layers):
        buffers = {SOURCE: k, KERNEL: number + k, RESULT: bias + len(affine) + 1}
        if k == 0:
            buffers[BIAS] = bias
        if k == number - 1:
            buffers |= affine
        program.add(layer, buffers, accumulate=k > 0)
    return program


def _gradients(layers: Sequence[Layer], dtype: str) -> Program:
    program, number = Program(dtype), len(layers)
    grad, bias = 2 * number, 4 * number + 1
    source_grads, kernel_grads = grad + 1, grad + 1 + number
    for k, layer in enumerate(layers):
        given = {SOURCE: k, KERNEL: number + k, RESULT_GRAD: grad}
        wanted = {SOURCE_GRAD: source_grads + k, KERNEL_GRAD: kernel_grads + k}
        if k == 0:
            wanted[BIAS_GRAD] = bias
        program.add_source_gradient(layer, given | wanted)
        program.add_parameter_gradients(layer, given | wanted)
    return program


def _upsample(layer: Layer, dtype: str) -> Program:
    program = Program(dtype)
    program.add(layer, {SOURCE: 0, KERNEL: 1, BIAS: 2, RESULT: 3})
    return program


def _upsample_gradient(layer: Layer, dtype: str) -> Program:
    program = Program(dtype)
    program.add_source_gradient(layer, {KERNEL: 0, RESULT_GRAD: 1, SOURCE_GRAD: 2})
    return program


def _register(what: str, layers: Sequence[Layer], dtype: str, build: Build) -> str:
    """Makes a program known to XLA; it is built when it first runs.

    Functions are traced for CPU on machines that then compile them for a GPU.
    """
    shapes = [(*layer.size, layer.channels, layer.features) for layer in layers]
    name = f"nucseg_{what}_{shapes}_{dtype}"
    build_once = functools.cache(build)
    xla_ffi.register(name, lambda addresses: build_once().run(addresses))
    return name


def _call(name: str, results: Any, operands: list[Array]) -> Any:
    return jax.ffi.ffi_call(name, results, vmap_method="sequential")(*operands)
