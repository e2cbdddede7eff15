"""Measures speed on this machine, beside a peer if one is given.

    python -m experiments.benchmarks --batch_sizes=2,10 --peer="python torch_unetpp.py"

Prints a table and writes it, with the machine's description, to --output as JSON. The
network and its peer are timed in turn, in one run; a ratio above 1 means that this
project is faster.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import pathlib
import statistics
from collections.abc import Iterator, Mapping

import jax.numpy as jnp
import tqdm
from absl import flags

from experiments import flags as shared
from experiments.benchmarks import measure
from experiments.benchmarks.operations import measure_operations
from experiments.benchmarks.peer import run_peer
from experiments.device import describe_device, describe_machine
from nucseg_jax.config import Config
from nucseg_jax.data.index import get_subset, load_subsets
from nucseg_jax.files import write_json

_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["2"], "Batch sizes to measure.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed repeats; the median is quoted.")
_STEPS = flags.DEFINE_integer(
    "steps", 3, "Runs of each repeat, after two to warm up; the fastest counts."
)
_PEER = flags.DEFINE_string(
    "peer",
    "",
    "Command of a peer that takes --batch, --features, --size, --dtype and --steps; of "
    "so many runs, after two to warm up, it tells the fastest.",
)
_PARTS = flags.DEFINE_list(
    "parts",
    ["train", "infer", "fast", "loader"],
    "What to measure: these, and operations (single ones beside XLA's own).",
)
_OUTPUT = shared.output("JSON file to write.", required=False)
shared.define_settings("data", "model", "train")

_ALL_PARTS = {"train", "infer", "fast", "loader", "operations"}
_LOADER_SECONDS = 4.0


def main() -> None:
    """Measures, prints, writes."""
    config = shared.config_from_flags()
    unknown = set(_PARTS.value) - _ALL_PARTS
    if unknown:
        raise ValueError(
            f"cannot measure {', '.join(sorted(unknown))}; choose from "
            f"{', '.join(sorted(_ALL_PARTS))}"
        )
    print(describe_device())
    about = machine(config)
    rows: list[dict] = []
    for more in measure_parts(config):
        rows += more
        if _OUTPUT.value:
            # A run that is ended keeps what is measured so far.
            report = {"machine": about, "rows": rows}
            write_json(pathlib.Path(_OUTPUT.value), report)
    print(format_table(rows))


def measure_parts(config: Config) -> Iterator[list[dict]]:
    """Yields the rows of one part after the other."""
    for batch_size in map(int, _BATCH_SIZES.value):
        yield measure_network(config, batch_size)
    if "operations" in _PARTS.value:
        yield measure_operations(
            config.model.features,
            int(_BATCH_SIZES.value[0]),
            config.data.size,
            config.model.dtype,
            _REPEATS.value,
        )
    if "loader" in _PARTS.value:
        yield measure_loader(config)


def measure_network(config: Config, batch_size: int) -> list[dict]:
    """Times the train step and inference, each repeat beside one of the peer."""
    batch = measure.make_batch(batch_size, config.data)
    timers = {}
    if "train" in _PARTS.value:
        timers["train"] = measure.train_step_timer(config, batch)
    if "infer" in _PARTS.value:
        timers["infer"] = measure.inference_timer(config, batch["image"])
    if "fast" in _PARTS.value:
        for head in range(1, len(config.model.features)):
            timers[f"fast {head}"] = measure.inference_timer(
                config, batch["image"], head=head
            )
    ours = {name: [] for name in timers}
    theirs: dict[str, list[float]] = {"train": [], "infer": []}
    for _ in tqdm.trange(_REPEATS.value, desc=f"batch {batch_size}", unit="repeat"):
        for name, (run, _) in timers.items():
            ours[name].append(measure.fastest(run, _STEPS.value) / batch_size)
        if _PEER.value and timers.keys() & theirs.keys():
            peer = ask_peer(config, batch_size)
            for name in theirs:
                theirs[name].append(float(peer[f"{name}_s_per_image"]))
    return [
        summarize(name, batch_size, ours[name], theirs.get(name, []), timers[name][1])
        for name in timers
    ]


def ask_peer(config: Config, batch_size: int) -> dict:
    """Runs the peer on the same task."""
    return run_peer(
        _PEER.value,
        batch_size=batch_size,
        features=config.model.features,
        size=config.data.size,
        dtype=config.model.dtype,
        steps=_STEPS.value,
    )


def summarize(
    name: str, batch_size: int, ours: list[float], theirs: list[float], about: dict
) -> dict:
    """Returns one row: medians, spread, ratio to the peer, and XLA's own figures."""
    row = {
        "part": name,
        "batch_size": batch_size,
        "s_per_image": statistics.median(ours),
        "all_s_per_image": ours,
        "gflop_per_s": about["gflop"] / batch_size / statistics.median(ours),
        **about,
    }
    if theirs:
        ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
        row |= {"peer_s_per_image": statistics.median(theirs), "all_peer": theirs}
        row["ratio"] = statistics.median(ratios)
    return row


def measure_loader(config: Config) -> list[dict]:
    """Measures the loader with 0, 1 and 2 workers beside the bare transforms."""
    data = shared.resolve_data(config.data)
    examples = get_subset(data, load_subsets(data), "train")
    config = dataclasses.replace(config, data=data)
    rates: dict[str, list[float]] = collections.defaultdict(list)
    with contextlib.ExitStack() as stack:
        loaders = [
            stack.enter_context(measure.loader(config, examples, workers))
            for workers in (0, 1, 2)
        ]
        for _ in tqdm.trange(_REPEATS.value, desc="loader", unit="repeat"):
            alone = measure.transforms_rate(config, examples, _LOADER_SECONDS)
            rates["transforms alone, one core"].append(alone)
            for workers, rate in enumerate(loaders):
                rates[f"loader, {workers} workers"].append(rate(_LOADER_SECONDS))
    return [_loader_row(part, rates) for part in rates]


def _loader_row(part: str, rates: Mapping[str, list[float]]) -> dict:
    ratios = {
        f"of_{name}": statistics.median(
            rate / other for rate, other in zip(rates[part], others, strict=True)
        )
        for name, others in (
            ("bare_transforms", rates["transforms alone, one core"]),
            ("one_worker", rates["loader, 1 workers"]),
        )
    }
    return {
        "part": part,
        "images_per_s": statistics.median(rates[part]),
        "all_images_per_s": rates[part],
    } | ratios


def machine(config: Config) -> dict:
    """Describes the machine, the software and the network measured."""
    return describe_machine() | {
        "product_gflop_per_s_float32": measure.product_peak(jnp.float32) / 1e9,
        "product_gflop_per_s_bfloat16": measure.product_peak(jnp.bfloat16) / 1e9,
        "peer": _PEER.value,
        "config": config.to_dict(),
    }


def format_table(rows: list[dict]) -> str:
    """Formats the rows for reading."""
    width = max([28, *(len(row["part"]) + 2 for row in rows)])
    lines = [
        f"{'part':<{width}}{'batch':>6}{'s/image':>10}{'GFLOP/s':>9}{'peer':>9}{'x':>7}"
    ]
    for row in rows:
        if "images_per_s" in row:
            lines.append(
                f"{row['part']:<{width}}{row['images_per_s']:>16.1f} images/s, "
                f"{row['of_bare_transforms']:.2f} of the bare transforms, "
                f"{row['of_one_worker']:.2f} of one worker"
            )
            continue
        line = (
            f"{row['part']:<{width}}{row['batch_size']:>6}{row['s_per_image']:>10.4f}"
        )
        line += f"{row['gflop_per_s']:>9.0f}" if "gflop_per_s" in row else " " * 9
        if "ratio" in row:
            line += f"{row['peer_s_per_image']:>9.4f}{row['ratio']:>7.2f}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    shared.run(main)
