"""Measures what a second process costs, each with a core of its own.

    python -m experiments.benchmarks.processes --features=16,32,64,128 --batch_size=4

One process trains with the given batch, then two with twice the batch, as often as
--repeats says and in turn. Their share of twice the one's speed is printed, and what
a step sends between them. Trains on the sample images.
"""

from __future__ import annotations

import math
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import jax
from absl import flags
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments import flags as shared
from experiments.benchmarks import measure
from experiments.device import describe_machine
from nucseg_jax.checkpoints import create_model
from nucseg_jax.config import Config
from nucseg_jax.files import write_json
from nucseg_jax.network.sharding import BATCH_AXIS
from nucseg_jax.training import losses, optim, state, step
from nucseg_jax.training.history import read_history

_REPEATS = flags.DEFINE_integer("repeats", 3, "Timed repeats; the median is quoted.")
_STEPS = flags.DEFINE_integer("steps", 20, "Steps of each repeat.")
_OUTPUT = shared.output("JSON file to write.", required=False)
shared.define_settings("data", "model", "train")

_BYTES = {"f32": 4, "bf16": 2, "s32": 4, "pred": 1}
_SHAPE = re.compile(r"(f32|bf16|s32|pred)\[([\d,]*)\]")


def main() -> None:
    """Measures, prints, writes."""
    config = shared.config_from_flags()
    os.environ["JAX_PLATFORMS"] = "cpu"  # Of the processes that are started.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(_REPEATS.value):
        for number in rates:
            rates[number].append(train(config, number))
    shares = [two / one / 2 for one, two in zip(rates[1], rates[2], strict=True)]
    number, num_bytes = count_sums(config)
    report = {
        "machine": describe_machine(),
        "config": config.to_dict(),
        "images_per_s": rates,
        "share_of_twice_one": statistics.median(shares),
        "all_shares": shares,
        "sums_a_step": number,
        "mib_a_step": num_bytes / 2**20,
    }
    print(
        f"one process {statistics.median(rates[1]):.2f} images/s, two "
        f"{statistics.median(rates[2]):.2f}: {statistics.median(shares):.2f} of twice "
        f"as many ({min(shares):.2f} to {max(shares):.2f}); a step sums {number} times "
        f"over all devices, {num_bytes / 2**20:.2f} MiB"
    )
    if _OUTPUT.value:
        write_json(pathlib.Path(_OUTPUT.value), report)


def train(config: Config, number: int) -> float:
    """Trains in `number` processes; returns images a second of the second epoch."""
    batch_size = config.train.batch_size * number
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "experiments.train", f"--workdir={folder}/run"]
        given = shared.given(shared.SETTINGS)
        command += [flags.FLAGS[name].serialize() for name in given]
        command += [f"--batch_size={batch_size}"]
        command += [f"--steps_per_epoch={_STEPS.value}", "--num_epochs=2"]
        processes = [
            subprocess.Popen(
                ["taskset", "--cpu-list", str(rank), *command, *told],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for rank, told in enumerate(tell_of_each_other(number))
        ]
        if any([process.wait() for process in processes]):
            raise OSError(f"a training failed: {' '.join(command)}")
        seconds = read_history(pathlib.Path(folder, "run", "history.csv"))[1]["seconds"]
    return _STEPS.value * batch_size / seconds


def tell_of_each_other(number: int) -> list[Sequence[str]]:
    """Returns the arguments by which each of `number` processes finds the others."""
    if number == 1:
        return [()]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared_by_all = (f"--coordinator=localhost:{port}", f"--num_processes={number}")
    return [(*shared_by_all, f"--process_id={rank}") for rank in range(number)]


def count_sums(config: Config) -> tuple[int, int]:
    """Counts what a compiled step sums over devices: how many times, and bytes."""
    mesh = jax.make_mesh((2,), (BATCH_AXIS,), axis_types=(AxisType.Auto,))
    divided, whole = (
        NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((BATCH_AXIS,), ())
    )
    tx = optim.create_optimizer(config.train, steps_per_epoch=50)
    created = state.create_train_state(create_model(config), tx, seed=0)
    batch = measure.make_batch(2 * config.train.batch_size, config.data)
    loss = losses.make_loss(config.train.supervision, config.data.targets)
    with jax.set_mesh(mesh):
        jitted = jax.jit(step.make_train_step(loss), out_shardings=whole)
        compiled = jitted.lower(
            jax.device_put(created, whole), jax.device_put(batch, divided)
        ).compile()
    lines = [
        line.partition(" all-reduce")[0]
        for line in (compiled.as_text() or "").splitlines()
        if re.search(r" all-reduce(-start)?\(", line)
    ]
    num_bytes = sum(
        _BYTES[kind] * math.prod(int(n) for n in shape.split(",") if n)
        for line in lines
        for kind, shape in _SHAPE.findall(line)
    )
    return len(lines), num_bytes


if __name__ == "__main__":
    shared.run(main)
