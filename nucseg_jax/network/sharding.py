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
    function: Callable[[Any, Any], Any], *, with_sums: bool = False
) -> Callable[[Any, Any], Any]:
    """Makes `function(batched, whole)` run on each device's own part of the batch.

    Args:
      function: Of a pytree of arrays [B, ...] and one of arrays that all devices have.
      with_sums: Whether it returns a pair, of arrays [B, ...] and of sums over the
        batch, instead of arrays [B, ...] alone.

    Returns:
      The function of whole arrays; `function` itself where there is no such mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if BATCH_AXIS not in mesh.axis_names:
        return function

    def sum_parts(batched: Any, whole: Any) -> Any:
        arrays, sums = function(batched, whole)
        return arrays, lax.psum(sums, BATCH_AXIS)

    divided, everywhere = PartitionSpec(BATCH_AXIS), PartitionSpec()
    return jax.shard_map(
        sum_parts if with_sums else function,
        mesh=mesh,
        in_specs=(divided, everywhere),
        out_specs=(divided, everywhere) if with_sums else divided,
        check_vma=False,
    )
