"""One training over all devices of all processes.

The batch is divided among the devices, everything else lies whole on each; XLA adds
the sums that this needs, those of batch normalisation included. The result is that of
one device with the same batch but for the order of its sums.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nucseg_jax.network.sharding import BATCH_AXIS
from nucseg_jax.training.stopping import StopRequest

_T = TypeVar("_T")
_USED = ("image_u8", "mask", "valid")
# Questions that may be open: an answer is read when the step before it is done, as the
# loop reads its metrics.
_OPEN_QUESTIONS = 2


class Devices:
    """All devices of all processes, and how arrays lie on them.

    Attributes:
      is_writer: Whether this process writes what only one may.
      shard: This process's number, and how many there are.
    """

    def __init__(self):
        self.shard = (jax.process_index(), jax.process_count())
        self.is_writer = self.shard[0] == 0
        self._mesh = None
        if jax.device_count() > 1:
            # By position: jax 0.12 has another name for the first argument than 0.10.
            shape, axes = (jax.device_count(),), (BATCH_AXIS,)
            self._mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,))
            self._sharded = NamedSharding(self._mesh, PartitionSpec(BATCH_AXIS))
            self._replicated = NamedSharding(self._mesh, PartitionSpec())
            self._max = jax.jit(jnp.max, out_shardings=self._replicated)

    def check_batch_size(self, batch_size: int) -> None:
        """Refuses batches that cannot be divided evenly.

        Raises:
          ValueError: Names both numbers.
        """
        if batch_size % jax.device_count():
            raise ValueError(
                f"batch_size is {batch_size}; it must be a multiple of the number of "
                f"devices, {jax.device_count()}"
            )

    def in_use(self) -> contextlib.AbstractContextManager[Any]:
        """Within it, compiled functions are divided among the devices."""
        return jax.set_mesh(self._mesh) if self._mesh else contextlib.nullcontext()

    def replicate(self, tree: _T) -> _T:
        """Puts arrays that every process has onto all devices."""
        if not self._mesh:
            return tree
        host = jax.tree.map(np.asarray, tree)
        return jax.tree.map(lambda leaf: jax.device_put(leaf, self._replicated), host)

    def start_max(self, number: int) -> jax.Array:
        """Starts to find the greatest of one number of each process.

        Every process must call it; `int` of the result waits for it.
        """
        if not self._mesh:
            return jnp.int32(number)
        numbers = np.full(jax.local_device_count(), number, np.int32)
        put = jax.make_array_from_process_local_data
        return self._max(put(self._sharded, numbers))

    def compile_train_step(self, step: Callable) -> Callable:
        """Compiles `step(state, batch)` for the loader's batches.

        Each process has its own rows of them. It takes over the state's memory.
        """
        step = _on_bytes(step)
        compiled = jax.jit(step, donate_argnums=0, **self._replicated_results())
        return lambda state, batch: compiled(state, self._put_own_rows(batch))

    def compile_eval_step(self, step: Callable) -> Callable:
        """Compiles `step(variables, batch)` for batches that every process has."""
        compiled = jax.jit(_on_bytes(step), **self._replicated_results())
        return lambda variables, batch: compiled(variables, self._put_whole(batch))

    def _replicated_results(self) -> dict[str, Any]:
        return {"out_shardings": self._replicated} if self._mesh else {}

    def _put_own_rows(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        if not self._mesh:
            return {name: jax.device_put(batch[name]) for name in _USED}
        put = jax.make_array_from_process_local_data
        return {name: put(self._sharded, batch[name]) for name in _USED}

    def _put_whole(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        if not self._mesh:
            return self._put_own_rows(batch)
        return {name: self._put_part(batch[name]) for name in _USED}

    def _put_part(self, array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(
            array.shape, self._sharded, lambda index: array[index]
        )


def _on_bytes(step: Callable) -> Callable:
    """Lets a step take what the loader gives: a quarter of the bytes to move."""

    def step_on_bytes(state: Any, batch: Mapping[str, jax.Array]) -> Any:
        image = batch["image_u8"].astype(jnp.float32) / 255
        mask = batch["mask"].astype(jnp.float32)
        return step(state, {"image": image, "mask": mask, "valid": batch["valid"]})

    return step_on_bytes


class AgreedStop(StopRequest):
    """A stop at the same step in all processes, whichever was asked.

    All must ask equally often. Each question is answered two questions later, so that
    no process waits for the newest step.
    """

    def __init__(self, own: StopRequest, devices: Devices):
        super().__init__()
        self._own = own
        self._devices = devices
        self._open: collections.deque[jax.Array] = collections.deque()

    def ask(self) -> bool:
        """Tells whether a signal came to any process before the last two questions."""
        if not self._signum:
            self._open.append(self._devices.start_max(self._own.signum))
            if len(self._open) > _OPEN_QUESTIONS:
                self._signum = int(self._open.popleft())
        return bool(self._signum)
