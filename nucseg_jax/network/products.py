"""Convolutions as matrix products, for what XLA's own does slowly on CPU.

3x3: shifted copies of an image are multiplied with a kernel, or with a gradient to give
the kernel's gradient, block by block of rows. Arrays are [B, H, W, C]; kernels are
[rows, columns, C, F].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Arrays = tuple[Array, ...]

# A block of shifted copies of this size stays in the caches of a core while it is
# multiplied; products of fewer positions are too small to be fast.
_BLOCK_BYTES = 5 << 19
_LEAST_POSITIONS = 512


def convolve(image: Array, kernel: Array) -> Array:
    """Convolves [B, H, W, C] with [3, 3, C, F], zeros around, sums in float32."""
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


def kernel_gradient(inputs: Arrays, grad: Array) -> Array:
    """Computes the gradient of a 3x3 convolution's kernel by matrix products.

    The nine shifted copies of the inputs or of `grad`, whichever has fewer channels,
    are multiplied with the other one, block by block of rows.

    Args:
      inputs: Each [B, H, W, C_k].
      grad: Gradient of the convolution's result, [B, H, W, F].

    Returns:
      [3, 3, sum of C_k, F], float32.
    """
    if grad.shape[-1] <= sum(x.shape[-1] for x in inputs):
        # Shifting the gradient one way is shifting the inputs the other way.
        return _sum_of_products(grad, inputs)[::-1, ::-1].swapaxes(2, 3)
    return _sum_of_products(jnp.concatenate(inputs, axis=-1), (grad,))


def upsample_kernel_gradient(image: Array, grad: Array) -> Array:
    """Computes the gradient of the kernel that makes 2x2 squares of pixels.

    The two pixels of a square's row lie side by side in memory, as if they were one of
    twice the channels: each row is one product, and nothing is copied.

    Args:
      image: [B, H, W, C].
      grad: Gradient of the result, [B, 2H, 2W, F].

    Returns:
      [2, 2, C, F], float32.
    """
    batch, height, width, channels = image.shape
    features = grad.shape[-1]
    pairs = grad.reshape(batch, height, 2, width, 2 * features)
    rows = jnp.stack([_product(image, pairs[:, :, row]) for row in range(2)])
    return rows.reshape(2, channels, 2, features).swapaxes(1, 2)


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
