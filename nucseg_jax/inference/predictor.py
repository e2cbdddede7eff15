"""The jitted, batched function from images to probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from nucseg_jax.network.unet_plus_plus import (
    UNetPlusPlus,
    Variables,
    infer,
    prune,
)

Array = jax.Array
Mode = Literal["accurate", "fast"]


def make_predict_fn(
    model: UNetPlusPlus,
    variables: Variables,
    mode: Mode = "accurate",
    *,
    head: int | None = None,
) -> Callable[[Array], Array]:
    """Makes the compiled prediction function; one compilation a shape.

    Args:
      model: The full network.
      variables: Its "params" and "batch_stats".
      mode: "accurate" averages the probabilities of all heads. "fast" computes one
        head, and of the network only what that head needs.
      head: Fast mode's head, 1 to depth - 1; None = the last one.

    Returns:
      Function of images float32 [B, H, W, 3] in [0, 1], of any H and W, to
      probabilities float32 [B, H, W, T].

    Raises:
      ValueError: If the mode or the head does not exist.
    """
    if mode not in ("accurate", "fast"):
        raise ValueError(f"mode is {mode!r}; choose accurate or fast")
    if mode == "fast":
        head = model.depth - 1 if head is None else head
        model, variables = prune(model, variables, head)
    multiple = 2 ** (model.depth - 1)

    @jax.jit
    def predict(images: Array) -> Array:
        height, width = images.shape[1:3]
        padded = _pad_to_multiple(images, multiple)
        head_logits = infer(model, variables, padded)
        probs = jax.nn.sigmoid(head_logits).mean(axis=0)
        return probs[:, :height, :width]

    return predict


def _pad_to_multiple(images: Array, multiple: int) -> Array:
    """Mirrors the lower and right edges up to multiples, [B, H, W, C]."""
    padding = [(0, -n % multiple) for n in images.shape[1:3]]
    return jnp.pad(images, [(0, 0), *padding, (0, 0)], mode="symmetric")
