"""One training step and one validation step: pure functions, compiled by the caller.

Metrics are of the first target, the foreground, at the threshold .5.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nucseg_jax.evaluation.pixel_metrics import PixelCounts, ScoreHistogram
from nucseg_jax.network.unet_plus_plus import UNetPlusPlus, combine_heads, infer
from nucseg_jax.training.losses import Loss
from nucseg_jax.training.state import TrainState, Variables

Array = jax.Array
Batch = Mapping[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """What one batch says of the network.

    Attributes:
      loss: Scalar float32.
      finite: Scalar bool: loss and all gradients were; the step was skipped if not.
      counts: Of the averaged heads.
      histogram: Of the averaged heads' probabilities.
    """

    loss: Array
    finite: Array
    counts: PixelCounts
    histogram: ScoreHistogram


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EvalMetrics:
    """`StepMetrics`, and the counts of each head by itself, int32 [L]."""

    step: StepMetrics
    heads: PixelCounts


def make_train_step(
    loss: Loss, *, ema_decay: float = 0.0
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """Makes `train_step(state, batch) -> (state, metrics)`.

    Where loss or gradients are not finite, the state stays but for its step number.

    Args:
      loss: From `losses.make_loss`.
      ema_decay: Weight of the old averaged variables; 0 if none are kept.
    """

    def train_step(state: TrainState, batch: Batch):
        def loss_of(params):
            head_logits, updates = state.apply_fn(
                {"params": params, "batch_stats": state.batch_stats},
                batch["image"],
                train=True,
                mutable=["batch_stats"],
            )
            value = loss(head_logits, batch["mask"])
            return value, (head_logits, updates["batch_stats"])

        grad_fn = jax.value_and_grad(loss_of, has_aux=True)
        (value, (head_logits, batch_stats)), grads = grad_fn(state.params)
        finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(grads))
        moved = state.apply_gradients(grads=grads, batch_stats=batch_stats)
        moved = moved.replace(ema=_average(moved, ema_decay))
        kept = state.replace(step=moved.step)
        state = jax.tree.map(functools.partial(jnp.where, finite), moved, kept)
        return state, _measure(value, head_logits, batch, finite)

    return train_step


def make_eval_step(
    model: UNetPlusPlus, loss: Loss
) -> Callable[[Variables, Batch], EvalMetrics]:
    """Makes `eval_step(variables, batch) -> metrics`; padded rows do not count."""

    def eval_step(variables: Variables, batch: Batch) -> EvalMetrics:
        head_logits = infer(model, variables, batch["image"])
        value = loss(head_logits, batch["mask"], valid=batch["valid"])
        count_heads: Any = jax.vmap(PixelCounts.from_batch, in_axes=(0, None, None))
        heads = count_heads(
            head_logits[..., 0] >= 0, _foreground(batch), batch["valid"]
        )
        # A loss that is not finite is what validation is to show.
        metrics = _measure(value, head_logits, batch, finite=jnp.array(True))
        return EvalMetrics(metrics, heads)

    return eval_step


def _average(state: TrainState, decay: float) -> Any:
    """Moves the averaged variables towards the present ones.

    The first steps weigh more, so that a short run does not average in its own start.
    """
    if state.ema is None:
        return None
    now = {"params": state.params, "batch_stats": state.batch_stats}
    step_size = 1 - jnp.minimum(decay, (1 + state.step) / (10 + state.step))
    return optax.incremental_update(now, state.ema, step_size=step_size)


def _measure(
    value: Array, head_logits: Array, batch: Batch, finite: Array
) -> StepMetrics:
    logits = combine_heads(head_logits)[..., 0]
    foreground, valid = _foreground(batch), batch["valid"]
    return StepMetrics(
        loss=value,
        finite=finite,
        counts=PixelCounts.from_batch(logits >= 0, foreground, valid),
        histogram=ScoreHistogram.from_batch(jax.nn.sigmoid(logits), foreground, valid),
    )


def _foreground(batch: Batch) -> Array:
    return jnp.asarray(batch["mask"][..., 0] > 0.5)
