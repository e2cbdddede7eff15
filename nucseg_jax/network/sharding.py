"""Which part of a batch a device computes, and calls that XLA cannot divide by itself.

Under `jax.set_mesh` with an axis `BATCH_AXIS`, arrays of a batch lie in parts on the
devices and parameters whole on each. XLA divides its own operations so; what comes
from outside, as oneDNN, is run for each part here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec

BATCH_AXIS = "batch"


def over_batch(
    function: Callable[[Any, Any], jax.Array], *, summed: bool = False
) -> Callable[[Any, Any], jax.Array]:
    """Makes `function(batched, whole)` run on each device's own part of the batch.

    Args:
      function: Of a pytree of arrays [B, ...] and one of arrays that all devices have.
      summed: Whether its result is a sum over the batch instead of an array [B, ...].

    Returns:
      The function of whole arrays; `function` itself where there is no such mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if BATCH_AXIS not in mesh.axis_names:
        return function

    def with_sum(batched: Any, whole: Any) -> jax.Array:
        return lax.psum(function(batched, whole), BATCH_AXIS)

    divided, everywhere = PartitionSpec(BATCH_AXIS), PartitionSpec()
    return jax.shard_map(
        with_sum if summed else function,
        mesh=mesh,
        in_specs=(divided, everywhere),
        out_specs=everywhere if summed else divided,
        check_vma=False,
    )
