"""Everything that changes during training, as one value."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.training import train_state

from nucseg_jax.network.unet_plus_plus import UNetPlusPlus

Variables = dict[str, Any]


class TrainState(train_state.TrainState):
    """Flax's state with batch statistics and averaged variables.

    Attributes:
      batch_stats: Running mean and variance of every batch normalisation.
      ema: Exponential moving average of {"params", "batch_stats"}; None = not kept.
    """

    batch_stats: Any
    ema: Variables | None

    @property
    def variables(self) -> Variables:
        """The variables to evaluate with: the averaged ones where they are kept."""
        if self.ema is not None:
            return self.ema
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_train_state(
    model: UNetPlusPlus,
    tx: optax.GradientTransformation,
    *,
    seed: int,
    ema_decay: float = 0.0,
) -> TrainState:
    """Initialises the network and its optimizer; equal seeds give equal states."""
    side = 2 ** (model.depth - 1)
    image = jnp.zeros((1, side, side, 3), jnp.float32)
    # Run once, so compiled without optimisation: on CPU that takes a tenth of the time.
    options = {"xla_backend_optimization_level": 0}
    init = jax.jit(model.init, compiler_options=options)
    variables = init(jax.random.key(seed), image)
    state = TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        tx=tx,
        batch_stats=variables["batch_stats"],
        # A copy: the step is given the state's memory, each buffer once.
        ema=jax.tree.map(jnp.copy, dict(variables)) if ema_decay else None,
    )
    # An array from the start, so that the first step is no other trace.
    return state.replace(step=jnp.zeros([], jnp.int32))
