"""The jitted, batched function from images to probabilities."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nucseg_jax.config import Mode
from nucseg_jax.network.unet_plus_plus import (
    UNetPlusPlus,
    Variables,
    average_heads,
    infer,
    prune,
)

Array = jax.Array


def make_predict_fn(
    model: UNetPlusPlus,
    variables: Variables,
    mode: Mode = "accurate",
    *,
    head: int | None = None,
    tta: int = 1,
) -> Callable[[Array], Array]:
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
      probabilities float32 [B, H, W, T].

    Raises:
      ValueError: If the mode, the head or the number of views does not exist.
    """
    if tta not in (1, 8):
        raise ValueError(f"tta is {tta}; choose 1 or 8 views")
    if mode not in ("accurate", "fast"):
        raise ValueError(f"mode is {mode!r}; choose accurate or fast")
    if mode == "fast":
        head = model.depth - 1 if head is None else head
        model, variables = prune(model, variables, head)
    multiple = 2 ** (model.depth - 1)

    def predict(images: Array) -> Array:
        height, width = images.shape[1:3]
        padded = _pad_to_multiple(images, multiple)
        probs = average_heads(infer(model, variables, padded))
        return probs[:, :height, :width]

    return jax.jit(_average_views(predict) if tta == 8 else predict)


def _average_views(predict: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Averages over the eight flips and quarter turns of a square."""

    def predict_views(images: Array) -> Array:
        # One view after the other: eight at once would take eight times the memory.
        total = jnp.zeros((), jnp.float32)
        for turns in range(4):
            for flip in (False, True):
                total += _unview(predict(_view(images, turns, flip)), turns, flip)
        return total / 8

    return predict_views


def _view(images: Array, turns: int, flip: bool) -> Array:
    turned = jnp.rot90(images, turns, axes=(1, 2))
    return turned[:, :, ::-1] if flip else turned


def _unview(images: Array, turns: int, flip: bool) -> Array:
    turned = images[:, :, ::-1] if flip else images
    return jnp.rot90(turned, -turns, axes=(1, 2))


def _pad_to_multiple(images: Array, multiple: int) -> Array:
    """Mirrors the lower and right edges up to multiples, [B, H, W, C]."""
    padding = [(0, -n % multiple) for n in images.shape[1:3]]
    return jnp.pad(images, [(0, 0), *padding, (0, 0)], mode="symmetric")
