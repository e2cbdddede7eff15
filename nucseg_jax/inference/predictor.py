"""The jitted, batched function from images to probabilities."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from nucseg_jax.config import Mode
from nucseg_jax.network.unet_plus_plus import (
    Interior,
    UNetPlusPlus,
    Variables,
    average_heads,
    infer,
    prune,
)

Array = jax.Array


class PredictFn(Protocol):
    """Images to probabilities; `make_predict_fn` says more."""

    def __call__(self, images: Array, interior: Interior | None = None, /) -> Array:
        """Predicts the images, or an interior of them."""
        ...


def make_predict_fn(
    model: UNetPlusPlus,
    variables: Variables,
    mode: Mode = "accurate",
    *,
    head: int | None = None,
    tta: int = 1,
) -> PredictFn:
    """Makes the compiled prediction function; one compilation a shape.

    Args:
      model: The full network.
      variables: Its "params" and "batch_stats".
      mode: "accurate" averages the probabilities of all heads. "fast" computes one
        head, and of the network only what that head needs.
      head: Fast mode's head, 1 to depth - 1; None = the last one.
      tta: Test-time augmentation: views whose probabilities are averaged. 1 = the
        image alone, 8 = all its flips and quarter turns.

    Returns:
      Function of images float32 [B, H, W, 3] in [0, 1], of any H and W, to
      probabilities float32 [B, H, W, T]. Given an interior of the images, whose sizes
      must then be multiples of 2^(depth - 1), it returns the probabilities there; near
      edges where the image goes on they are others than those of the whole.

    Raises:
      ValueError: If the mode, the head or the number of views does not exist; from the
        function, if the images have another shape or are whole numbers.
    """
    if tta not in (1, 8):
        raise ValueError(f"tta is {tta}; choose 1 or 8 views")
    if mode not in ("accurate", "fast"):
        raise ValueError(f"mode is {mode!r}; choose accurate or fast")
    if mode == "fast":
        head = model.depth - 1 if head is None else head
        model, variables = prune(model, variables, head)
    multiple = 2 ** (model.depth - 1)

    def predict(images: Array, interior: Interior | None = None) -> Array:
        _check_images(images)
        height, width = images.shape[1:3]
        padded = _pad_to_multiple(images, multiple)
        probs = average_heads(infer(model, variables, padded, interior))
        return probs[:, :height, :width]

    return jax.jit(_average_views(predict) if tta == 8 else predict)


def _check_images(images: Array) -> None:
    """Refuses what cannot be prepared images; costs nothing once it is compiled."""
    if images.ndim != 4:
        raise ValueError(f"images have the shape {images.shape}; expected [B, H, W, 3]")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images are {images.dtype}; expected floats in [0, 1], as by "
            "prepare_image(...) / np.float32(255)"
        )


def _average_views(predict: PredictFn) -> PredictFn:
    """Averages over the eight flips and quarter turns of a square."""

    def predict_views(images: Array, interior: Interior | None = None) -> Array:
        # One view after the other: eight at once would take eight times the memory.
        total = jnp.zeros((), jnp.float32)
        for turns in range(4):
            for flip in (False, True):
                part = interior and _view_interior(
                    interior, images.shape[1:3], turns, flip
                )
                probs = predict(_view(images, turns, flip), part)
                total += _unview(probs, turns, flip)
        return total / 8

    return predict_views


def _view(images: Array, turns: int, flip: bool) -> Array:
    turned = jnp.rot90(images, turns, axes=(1, 2))
    return turned[:, :, ::-1] if flip else turned


def _view_interior(
    interior: Interior, shape: tuple[int, ...], turns: int, flip: bool
) -> Interior:
    """Finds the place of an interior in a view of images of a shape."""
    height, width = shape
    for _ in range(turns):
        # The last column becomes the first row.
        top = width - interior.left - interior.width
        interior = Interior(top, interior.top, interior.width, interior.height)
        height, width = width, height
    if flip:
        left = width - interior.left - interior.width
        interior = dataclasses.replace(interior, left=left)
    return interior


def _unview(images: Array, turns: int, flip: bool) -> Array:
    turned = images[:, :, ::-1] if flip else images
    return jnp.rot90(turned, -turns, axes=(1, 2))


def _pad_to_multiple(images: Array, multiple: int) -> Array:
    """Mirrors the lower and right edges up to multiples, [B, H, W, C]."""
    padding = [(0, -n % multiple) for n in images.shape[1:3]]
    return jnp.pad(images, [(0, 0), *padding, (0, 0)], mode="symmetric")
