"""AMSGrad as Keras computes it, and learning-rate schedules."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nucseg_jax.config import TrainConfig


class AmsgradState(NamedTuple):
    """Step count and moments: m, v and the running maximum of v."""

    count: jax.Array
    mean: optax.Updates
    variance: optax.Updates
    max_variance: optax.Updates


def scale_by_amsgrad(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Rescales gradients by AMSGrad, with Keras's placing of bias correction and eps.

    m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  v_max = max(v_max, v)
    update = m sqrt(1 - b2^t) / (1 - b1^t) / (sqrt(v_max) + eps)

    `optax.amsgrad` keeps the maximum of the bias-corrected v instead. Early in
    training that is far larger, so one large first gradient slows it for good.

    References:
      Reddi et al., On the convergence of Adam and beyond, 2018 (arXiv:1904.09237);
      keras.optimizers.Adam(amsgrad=True).
    """

    def init(params: optax.Params) -> AmsgradState:
        def zeros():
            return jax.tree.map(jnp.zeros_like, params)

        return AmsgradState(jnp.zeros([], jnp.int32), zeros(), zeros(), zeros())

    def update(updates, state, params=None):
        del params
        count = state.count + 1
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, updates)
        variance = jax.tree.map(
            lambda v, g: b2 * v + (1 - b2) * g * g, state.variance, updates
        )
        max_variance = jax.tree.map(jnp.maximum, state.max_variance, variance)
        steps = count.astype(jnp.float32)
        # expm1 keeps 1 - b^t exact in float32, where b^t is close to 1.
        correction = jnp.sqrt(-jnp.expm1(steps * jnp.log(b2)))
        correction /= -jnp.expm1(steps * jnp.log(b1))
        updates = jax.tree.map(
            lambda m, v: correction * m / (jnp.sqrt(v) + eps), mean, max_variance
        )
        return updates, AmsgradState(count, mean, variance, max_variance)

    return optax.GradientTransformation(init, update)


def create_schedule(config: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """Creates the learning rate as a function of the step.

    A linear warm-up from 0 to the peak, then by `config.decay`: "constant"; "cosine"
    down to 0 at the last step; "step", which halves it at each of `decay_epochs`
    (the original: no warm-up, halved once, at epoch 6).
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    num_steps = config.num_epochs * steps_per_epoch
    if config.decay == "cosine":
        decay = optax.cosine_decay_schedule(
            config.learning_rate, max(1, num_steps - warmup)
        )
    elif config.decay == "step":
        # join_schedules counts each part from its own beginning.
        boundaries = [round(e * steps_per_epoch) - warmup for e in config.decay_epochs]
        halvings = {step: 0.5**n for step, n in Counter(boundaries).items()}
        decay = optax.piecewise_constant_schedule(config.learning_rate, halvings)
    else:
        decay = optax.constant_schedule(config.learning_rate)
    if not warmup:
        return decay
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
    return optax.join_schedules([rise, decay], [warmup])


def create_optimizer(
    config: TrainConfig, steps_per_epoch: int
) -> optax.GradientTransformation:
    """Chains gradient clipping, AMSGrad and the learning-rate schedule."""
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else None
    return optax.chain(
        *([clip] if clip else []),
        scale_by_amsgrad(),
        optax.scale_by_learning_rate(create_schedule(config, steps_per_epoch)),
    )
