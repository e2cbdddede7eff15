"""Single operations of the network beside XLA's own: what each change is worth.

Each case holds two functions of the same arguments with the same result, the project's
and XLA's plain one.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nucseg_jax.network import convolution

_NUMBERS = ("NHWC", "HWIO", "NHWC")


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation, two ways.

    Attributes:
      name: What is computed, and the sizes.
      ours: The project's way.
      plain: XLA's.
      args: Arrays for both.
    """

    name: str
    ours: Callable[..., Any]
    plain: Callable[..., Any]
    args: tuple[Any, ...]


def measure_operations(
    features: tuple[int, ...], batch_size: int, size: int, dtype: str, repeats: int
) -> list[dict[str, Any]]:
    """Times every operation at the sizes that a network has.

    Returns:
      Rows with "part", "batch_size", "s_per_image" (ours), "peer_s_per_image" (XLA's
      own) and their ratio, medians over repeats taken in turn.
    """
    rows = []
    for case in _cases(features, batch_size, size, jnp.dtype(dtype)):
        timers = [_timer(case.ours, case.args), _timer(case.plain, case.args)]
        times = [[timer() for timer in timers] for _ in range(repeats)]
        ours, plain = zip(*times, strict=True)
        rows.append(
            {
                "part": case.name,
                "batch_size": batch_size,
                "s_per_image": statistics.median(ours) / batch_size,
                "peer_s_per_image": statistics.median(plain) / batch_size,
                "ratio": statistics.median(p / o for o, p in times),
            }
        )
    return rows


def _cases(
    features: tuple[int, ...], batch_size: int, size: int, dtype: Any
) -> Iterator[Case]:
    for level, channels in enumerate(features):
        side = size >> level
        image, grad = (
            jax.random.normal(jax.random.key(k), (batch_size, side, side, channels))
            for k in (0, 1)
        )
        image, grad = image.astype(dtype), grad.astype(dtype)
        kernel = jax.random.normal(jax.random.key(2), (3, 3, channels, channels), dtype)
        sizes = f"{side}x{side}, {channels} channels"
        yield _convolution(sizes, image, kernel)
        yield _kernel_gradient(sizes, image, kernel, grad)
        if level < len(features) - 1:
            yield _joined(sizes, image, len(features))
            yield _pooling(sizes, image)
        if level:
            yield _upsampling(sizes, image, features[level - 1])


def _plain(image: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=_NUMBERS
    )


def _without_bias(images: tuple[jax.Array, ...], kernel: jax.Array) -> jax.Array:
    return convolution.convolve(images, kernel, jnp.zeros_like(kernel[0, 0, 0]))


def _convolution(sizes: str, image: jax.Array, kernel: jax.Array) -> Case:
    def ours(image: jax.Array, kernel: jax.Array) -> jax.Array:
        return _without_bias((image,), kernel)

    return Case(f"convolution, {sizes}", ours, _plain, (image, kernel))


def _kernel_gradient(
    sizes: str, image: jax.Array, kernel: jax.Array, grad: jax.Array
) -> Case:
    def ours(image: jax.Array, kernel: jax.Array, grad: jax.Array) -> jax.Array:
        return jax.vjp(lambda k: _without_bias((image,), k), kernel)[1](grad)[0]

    def plain(image: jax.Array, kernel: jax.Array, grad: jax.Array) -> jax.Array:
        return jax.vjp(lambda k: _plain(image, k), kernel)[1](grad)[0]

    return Case(f"kernel gradient, {sizes}", ours, plain, (image, kernel, grad))


def _joined(sizes: str, image: jax.Array, number: int) -> Case:
    """A decoder node: the convolution of several inputs."""
    channels = image.shape[-1]
    shape = (3, 3, number * channels, channels)
    kernel = jax.random.normal(jax.random.key(3), shape, image.dtype)
    images = tuple(image + k for k in range(number))

    def plain(images: tuple[jax.Array, ...], kernel: jax.Array) -> jax.Array:
        return _plain(jnp.concatenate(images, axis=-1), kernel)

    name = f"convolution of {number} inputs, {sizes}"
    return Case(name, _without_bias, plain, (images, kernel))


def _pooling(sizes: str, image: jax.Array) -> Case:
    def plain(image: jax.Array) -> jax.Array:
        return nn.max_pool(image, (2, 2), strides=(2, 2))

    ours, theirs = map(_with_gradient, (convolution.max_pool, plain))
    return Case(f"pooling with gradient, {sizes}", ours, theirs, (image,))


def _upsampling(sizes: str, image: jax.Array, features: int) -> Case:
    modules = (
        convolution.Upsample(features, dtype=image.dtype),
        nn.ConvTranspose(features, (2, 2), strides=(2, 2), dtype=image.dtype),
    )
    params = modules[0].init(jax.random.key(4), image)
    ours, theirs = (_with_gradient(module.apply) for module in modules)
    return Case(f"upsampling with gradient, {sizes}", ours, theirs, (params, image))


def _with_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    def total(*args: Any) -> jax.Array:
        return jnp.sum(jnp.sin(function(*args).astype(jnp.float32)))

    def gradient(*args: Any) -> Any:
        return jax.grad(total, argnums=tuple(range(len(args))))(*args)

    return gradient


def _timer(function: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], float]:
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*args))

    def run() -> float:
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        return time.perf_counter() - start

    return run
