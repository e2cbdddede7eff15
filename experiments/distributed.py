"""Joins the processes of one training: SLURM's, MPI's, Kubernetes's by themselves.

Elsewhere each is told: --coordinator=HOST:PORT --num_processes=2 --process_id=0.
"""

from __future__ import annotations

import importlib.util
import os
import sys

from absl import flags

flags.disclaim_key_flags()

# Set by launchers, and only for the processes that they start.
_TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_KUBERNETES_JOB = "JOB_COMPLETION_INDEX"


def define_flags() -> None:
    """Defines the flags that tell of other processes."""
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0.")
    flags.DEFINE_integer("num_processes", 1, "Processes that train together.")
    flags.DEFINE_integer("process_id", 0, "Number of this process, from 0.")
    for name in ("coordinator", "num_processes", "process_id"):
        flags.declare_key_flag(name)


def join_processes() -> None:
    """Joins the others, if there are any; before anything else is done with JAX.

    Raises:
      ValueError: If the flags do not tell enough.
    """
    values = flags.FLAGS
    if values.num_processes > 1 and not values.coordinator:
        raise ValueError("--num_processes needs --coordinator=HOST:PORT")
    launched = any(int(os.environ.get(name, "1")) > 1 for name in _TASKS)
    in_kubernetes = _KUBERNETES_JOB in os.environ
    if not (values.coordinator or launched or in_kubernetes):
        return
    if in_kubernetes and not (values.coordinator or _asks_kubernetes()):
        raise ValueError(
            "this is a process of an indexed Kubernetes job: pip install 'jax[k8s]', "
            "with which they find each other; or tell each --coordinator=HOST:PORT "
            f"--num_processes=N --process_id=${_KUBERNETES_JOB}; or unset "
            f"{_KUBERNETES_JOB} to train alone"
        )
    import jax

    told = (
        {
            "coordinator_address": values.coordinator,
            "num_processes": values.num_processes,
            "process_id": values.process_id,
        }
        if values.coordinator
        else {}
    )
    jax.distributed.initialize(**told)
    if jax.process_index():
        # One process tells how it goes; errors are told by each.
        os.environ["TQDM_DISABLE"] = "1"
        sys.stdout = open(os.devnull, "w")


def _asks_kubernetes() -> bool:
    return importlib.util.find_spec("kubernetes") is not None
