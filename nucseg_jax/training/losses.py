"""Losses: pure functions of logits float [B, H, W, T] and a target of the same shape.

All work on logits, where log-probabilities stay exact; all return a float32 scalar.
Shapes must be equal: a mask [B, H, W] against logits [B, H, W, 1] would broadcast to
[B, H, W, W] and train on nonsense. `valid`, bool [B], leaves out the rows that fill up
a last batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nucseg_jax.config import BINARY_TARGETS
from nucseg_jax.network.unet_plus_plus import combine_heads

Array = jax.Array
Loss = Callable[..., Array]

_PIXELS = (0, 1, 2)  # All axes but that of targets.


def binary_cross_entropy(
    logits: Array, mask: Array, *, valid: Array | None = None
) -> Array:
    """Computes the binary cross-entropy, averaged over pixels.

    Args:
      logits: float [B, H, W, T].
      mask: Target in [0, 1], same shape.
      valid: bool [B]; None = all rows.

    Raises:
      ValueError: If shapes differ.
    """
    return jnp.mean(_cross_entropy_of_targets(logits, mask, valid))


def soft_dice_loss(
    logits: Array, mask: Array, *, smooth: float = 1.0, valid: Array | None = None
) -> Array:
    """Computes one minus the soft Dice coefficient, summed over the whole batch.

    1 - (2 sum(y p) + smooth) / (sum(y) + sum(p) + smooth), for each target, averaged
    over targets.

    Args:
      logits: float [B, H, W, T].
      mask: Target in [0, 1], same shape.
      smooth: Added to both sides of the fraction; defines the value for empty masks.
      valid: bool [B]; None = all rows.

    Returns:
      Scalar float32 in [0, 1).

    Raises:
      ValueError: If shapes differ.

    References:
      Milletari et al., V-Net, 2016 (arXiv:1606.04797); the sum over the batch and the
      single `smooth` are those of the Keras notebook re-created here.
    """
    return jnp.mean(_dice_of_targets(logits, mask, valid, smooth))


def bce_dice_loss(logits: Array, mask: Array, *, valid: Array | None = None) -> Array:
    """Returns the sum of `binary_cross_entropy` and `soft_dice_loss`."""
    return binary_cross_entropy(logits, mask, valid=valid) + soft_dice_loss(
        logits, mask, valid=valid
    )


def targets_loss(targets: Sequence[str]) -> Loss:
    """Makes the loss of several targets: the sum of each channel's own.

    Foreground, boundary and contact are masks and take `bce_dice_loss`. Distance is a
    value in [0, 1] and takes the cross-entropy alone, which is least where the
    probability equals the value.

    Args:
      targets: What the channels are, in order.

    Returns:
      `loss(logits, mask, valid=None)`.
    """
    is_mask = np.array([name in BINARY_TARGETS for name in targets])

    def loss(logits: Array, mask: Array, *, valid: Array | None = None) -> Array:
        cross_entropy = _cross_entropy_of_targets(logits, mask, valid)
        dice = _dice_of_targets(logits, mask, valid)
        return jnp.sum(cross_entropy) + jnp.sum(dice, where=is_mask)

    return loss


def average_supervision(
    head_logits: Array,
    mask: Array,
    *,
    valid: Array | None = None,
    loss: Loss = bce_dice_loss,
) -> Array:
    """Loss of the mean of the heads' probabilities, as the original.

    Args:
      head_logits: float [L, B, H, W, T].
      mask: float [B, H, W, T].
      valid: bool [B]; None = all rows.
      loss: Of logits and mask [B, H, W, T].
    """
    return loss(combine_heads(head_logits), mask, valid=valid)


def per_head_supervision(
    head_logits: Array,
    mask: Array,
    *,
    valid: Array | None = None,
    loss: Loss = bce_dice_loss,
) -> Array:
    """Mean of the heads' losses, as the UNet++ paper; arguments as above."""
    losses = [loss(logits, mask, valid=valid) for logits in head_logits]
    return jnp.mean(jnp.stack(losses))


SUPERVISIONS: dict[str, Loss] = {
    "average": average_supervision,
    "per_head": per_head_supervision,
}


def make_loss(supervision: str, targets: Sequence[str]) -> Loss:
    """Makes `loss(head_logits, mask, valid=None)` of a supervision and targets."""
    return functools.partial(SUPERVISIONS[supervision], loss=targets_loss(targets))


def _cross_entropy_of_targets(logits: Array, mask: Array, valid: Array | None) -> Array:
    """Cross-entropy of each target, averaged over pixels: [T]."""
    _check_shapes(logits, mask)
    logits, mask = logits.astype(jnp.float32), mask.astype(jnp.float32)
    # Where a mask's sign is right, the first two terms are 0 exactly, and the small
    # loss that is left there is not rounded away beside a large logit. At 0, both
    # choices fall alike, so that the gradient there is sigmoid(0) - mask.
    positive = logits >= 0
    pixel_losses = (
        jnp.where(positive, logits, 0)
        - logits * mask
        + jnp.log1p(jnp.exp(jnp.where(positive, -logits, logits)))
    )
    if valid is None:
        return jnp.mean(pixel_losses, _PIXELS)
    num_pixels = jnp.maximum(jnp.sum(valid), 1) * pixel_losses[0, ..., 0].size
    return jnp.sum(jnp.where(_rows(valid), pixel_losses, 0), _PIXELS) / num_pixels


def _dice_of_targets(
    logits: Array, mask: Array, valid: Array | None, smooth: float = 1.0
) -> Array:
    """`soft_dice_loss` of each target: [T]."""
    _check_shapes(logits, mask)
    probs = jax.nn.sigmoid(logits.astype(jnp.float32))
    mask = mask.astype(jnp.float32)
    if valid is not None:
        probs, mask = probs * _rows(valid), mask * _rows(valid)
    overlap = jnp.sum(probs * mask, _PIXELS)
    total = jnp.sum(probs, _PIXELS) + jnp.sum(mask, _PIXELS)
    return 1 - (2 * overlap + smooth) / (total + smooth)


def _check_shapes(logits: Array, mask: Array) -> None:
    if logits.shape != mask.shape or logits.ndim != 4:
        raise ValueError(
            f"logits {logits.shape} and mask {mask.shape} must both be [B, H, W, T]"
        )


def _rows(valid: Array) -> Array:
    return valid[:, None, None, None]
