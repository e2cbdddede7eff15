"""Finds, counts and measures the nuclei in a large image, on a Dask cluster.

    python -m experiments.predict_dask --input=SLIDE.zarr --output=results \\
        [--scheduler=tcp://HOST:PORT]

The image is an OME-Zarr, or any other that can be read by region. Blocks of it are the
cluster's tasks. There is one label image, an OME-Zarr with ids unique over the image,
and one table; results lie where those of `experiments.predict` would. The images of a
folder are done one after the other. Without a scheduler, processes on this machine do
the work. Run again, it goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import tqdm
from absl import flags

from experiments import flags as shared
from experiments import output_folder
from experiments.device import describe_device
from experiments.prediction import (
    choose_checkpoint,
    define_flags,
    find_settings,
    read_network,
    read_options,
    tell_foreign,
    tell_retired,
)
from nucseg_jax import pretrained
from nucseg_jax.inference.jobs import Job, find_jobs
from nucseg_jax.inference.record import Outcome

_INPUT = shared.source("The image, where all workers can read it.")
_OUTPUT = shared.output("Folder for the results, where all workers can write.")
define_flags()
_SCHEDULER = flags.DEFINE_string(
    "scheduler",
    "",
    "Address of a Dask scheduler, tcp://HOST:PORT, or its scheduler file, *.json; "
    "empty = processes on this machine.",
)
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers",
    1,
    "Processes on this machine, where no scheduler is named.",
    lower_bound=1,
)
_BLOCK = flags.DEFINE_integer(
    "block",
    4096,
    "Side of the blocks, pixels, a multiple of 512: smaller ones take less memory and "
    "more time. Part of the result: ids follow the blocks.",
    lower_bound=1,
)


def main() -> int:
    """Segments the image and tells; returns 1 if any could not be finished."""
    # Or Dask's log, also that of its processes, hides the bars.
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "warning")
    # Dask is an extra of the project.
    try:
        from nucseg_jax.inference import block_tasks, cluster
    except ModuleNotFoundError as error:
        if error.name != "distributed":
            raise
        raise ValueError("Dask is not installed: pip install -e '.[dask]'") from error
    options = read_options(cluster.SAVE)
    found = find_jobs(os.path.abspath(_INPUT.value))
    folder = pathlib.Path(_OUTPUT.value)
    tell_foreign(found.foreign)
    # This process computes nothing: a GPU is the workers', and so is the choice by it.
    jax.config.update("jax_platforms", "cpu")
    with _connect() as client:
        checkpoint = choose_checkpoint(client.submit(pretrained.choose).result)
        named = read_network(checkpoint)
        settings = find_settings(named, options) | {"block": _BLOCK.value}
        network = block_tasks.Network.find(**named)
        which = output_folder.begin_run(folder, settings, len(found.jobs))
        segment = functools.partial(
            cluster.segment_image,
            client,
            network=network,
            output=folder,
            options=dataclasses.replace(options, settings=which),
            side=_BLOCK.value,
            tell_progress=Bars().show,
        )
        outcomes = []
        for job in found.jobs:
            outcomes.append(segment_and_tell(segment, job))
            output_folder.check_unchanged(folder, which)
    failed = [outcome for outcome in outcomes if outcome.error]
    output_folder.write_failures(folder, failed)
    output_folder.merge(folder)
    print(f"-> {folder / 'nuclei.csv'}, summary.csv, report.html, labels_zarr")
    return 1 if failed else 0


def segment_and_tell(segment: Callable[[Job], Outcome], job: Job) -> Outcome:
    """Segments one image and tells."""
    outcome = segment(job)
    done = " (finished before)" if outcome.num_skipped else ""
    print(f"{job.relative}: {outcome.num_nuclei:,} new nuclei{done}")
    if outcome.error:
        print(f"error: {outcome.error}", file=sys.stderr)
    tell_retired(outcome.num_retired)
    return outcome


class Bars:
    """A progress bar for each step of many tasks."""

    def __init__(self):
        self._bars: dict[str, tqdm.tqdm] = {}

    def show(self, name: str, stage: str, done: int, total: int) -> None:
        """Shows that `done` of `total` tasks of a step are done."""
        if total == 1:
            return
        title = f"{name}: {stage}"
        if title not in self._bars:
            self._bars[title] = tqdm.tqdm(total=total, desc=title, unit="block")
        bar = self._bars[title]
        bar.update(done - bar.n)
        if done == total:
            self._bars.pop(title).close()


@contextlib.contextmanager
def _connect() -> Iterator[Any]:
    """Joins the cluster, or starts one on this machine."""
    from distributed import Client, LocalCluster

    address = os.path.expanduser(_SCHEDULER.value)
    with contextlib.ExitStack() as stack:
        if address.endswith(".json"):
            if not os.path.exists(address):
                print(f"waiting for {address}", flush=True)
            client = Client(scheduler_file=address)
        elif address:
            client = Client(address)
        else:
            # One thread a worker: JAX and OpenCV divide the work of a block themselves.
            # Any free port: others on this machine may have a cluster, too.
            local = LocalCluster(
                n_workers=_NUM_WORKERS.value,
                threads_per_worker=1,
                dashboard_address="localhost:0",
            )
            client = Client(stack.enter_context(local))
        stack.enter_context(client)
        if not client.scheduler_info()["workers"]:
            print("waiting for workers")
            client.wait_for_workers(1)
        print(f"a worker's {client.submit(describe_device).result()}")
        yield client


if __name__ == "__main__":
    shared.run(main)
