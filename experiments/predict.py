"""Finds, counts and measures the nuclei in an image or a folder of images.

    python -m experiments.predict --input=FOLDER --output=results [--checkpoint=RUN]

Images may be of any size and kind: PNG, JPEG, BMP, TIFF and its stacks, OME-Zarr. For
each there is a label image, a mask, an overlay to look at and a table; nuclei.csv and
summary.csv hold all images, report.html shows them. Run again, it goes on where it
stopped. Parts of a large folder may run on many machines at once: see --num_shards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import pathlib
import signal
import sys
from collections.abc import Iterator

import tqdm
from absl import flags

from experiments import flags as shared
from experiments import output_folder
from experiments.device import start_device
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
from nucseg_jax.inference import outputs
from nucseg_jax.inference.jobs import (
    Options,
    find_jobs,
    select_shard,
)
from nucseg_jax.inference.record import Outcome
from nucseg_jax.inference.run import Watch, segment_files
from nucseg_jax.inference.segmenter import Segmenter, load_segmenter
from nucseg_jax.inference.streams import PlaneInfo
from nucseg_jax.inference.tile_predictor import TellTiles
from nucseg_jax.training.stopping import Stopped

_INPUT = shared.source("Image, or folder searched with its subfolders.")
_OUTPUT = shared.output("Folder for the results.")
_SAVE = flags.DEFINE_list(
    "save",
    ["labels", "mask", "overlay", "table"],
    "What to write: "
    + "; ".join(f"{product.name} ({product.help})" for product in outputs.PRODUCTS),
)
define_flags()
_ON_ERROR = flags.DEFINE_enum(
    "on_error", "skip", ["skip", "stop"], "What a file that cannot be read does."
)
_NUM_SHARDS = flags.DEFINE_integer(
    "num_shards",
    int(os.environ.get("SLURM_ARRAY_TASK_COUNT", "1")),
    "Parts that the images are divided into, each for a process of its own. If not "
    "given: the tasks of a SLURM array job; 1 where each has an --input of its own.",
    lower_bound=1,
)
_SHARD_INDEX = flags.DEFINE_integer(
    "shard_index",
    (
        int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
        - int(os.environ.get("SLURM_ARRAY_TASK_MIN", "0"))
    )
    // int(os.environ.get("SLURM_ARRAY_TASK_STEP", "1")),
    "Which of these parts, from 0. If not given: that of a SLURM array job, whose "
    "indices must be a range.",
)


def main() -> int:
    """Segments every file of the shard; returns 1 if any could not be finished."""
    outputs.check_save(_SAVE.value)
    options = read_options(_SAVE.value)
    found = find_jobs(_INPUT.value)
    jobs = select_shard(found.jobs, _NUM_SHARDS.value, _SHARD_INDEX.value)
    folder = pathlib.Path(_OUTPUT.value)
    tell_foreign(found.foreign)
    if _NUM_SHARDS.value > 1:
        part = f"shard {_SHARD_INDEX.value} of {_NUM_SHARDS.value}"
        print(f"{part}: {len(jobs)} of {len(found.jobs)} files")
    print(start_device())
    network = read_network(choose_checkpoint(pretrained.choose))
    segmenter = load_segmenter(**network)
    settings = find_settings(network, options)
    which = output_folder.begin_run(
        folder, settings, len(jobs), _NUM_SHARDS.value, _SHARD_INDEX.value
    )
    options = dataclasses.replace(options, settings=which)
    outcomes = segment_all(jobs, segmenter, folder, options)
    failed = [outcome for outcome in outcomes if outcome.error]
    num_left = len(jobs) - len(outcomes)
    output_folder.write_failures(
        folder, failed, _NUM_SHARDS.value, _SHARD_INDEX.value, num_left=num_left
    )
    if _NUM_SHARDS.value == 1:
        output_folder.merge(folder)
    else:
        print(
            f"when all shards are done: python -m experiments.merge --output={folder}"
        )
    return tell(outcomes, failed, folder, num_left=num_left)


def segment_all(
    jobs: list, segmenter: Segmenter, folder: pathlib.Path, options: Options
) -> list[Outcome]:
    """Segments under a progress bar, up to the first error if that is asked for.

    Raises:
      Stopped: By Ctrl-C; what was finished is kept.
    """
    outcomes = []
    with (
        _stopping(),
        tqdm.tqdm(total=len(jobs), desc="segmenting", unit="file") as bar,
        contextlib.closing(
            segment_files(jobs, segmenter, folder, options, watch=counting(bar))
        ) as results_of_jobs,
    ):
        for outcome in results_of_jobs:
            output_folder.check_unchanged(folder, options.settings)
            outcomes.append(outcome)
            bar.update()
            if outcome.error and _ON_ERROR.value == "stop":
                break
    return outcomes


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        raise Stopped(signal.SIGINT) from error


def counting(bar: tqdm.tqdm) -> Watch:
    """Shows tiles, and beside a bar of files the images in them that are done.

    A file may be a stack of thousands.
    """
    done = itertools.count(1)

    @contextlib.contextmanager
    def watch(info: PlaneInfo) -> Iterator[TellTiles]:
        with show_tiles(info) as tell_tiles:
            yield tell_tiles
        bar.set_postfix(images=next(done))

    return watch


@contextlib.contextmanager
def show_tiles(info: PlaneInfo) -> Iterator[TellTiles]:
    """Shows a progress bar of an image that takes several tiles and over a second."""
    with tqdm.tqdm(desc=info.name, unit="tile", leave=False, delay=1) as bar:

        def show(done: int, total: int) -> None:
            if total > 1:
                bar.total = total
                bar.update(done - bar.n)

        yield show


def tell(
    outcomes: list[Outcome],
    failed: list[Outcome],
    folder: pathlib.Path,
    *,
    num_left: int,
) -> int:
    """Prints what came of the run; returns the exit code."""
    done = len(outcomes) - len(failed)
    planes = sum(outcome.num_planes for outcome in outcomes)
    skipped = sum(outcome.num_skipped for outcome in outcomes)
    parts = sum(outcome.num_elsewhere > 0 for outcome in outcomes)
    retired = sum(outcome.num_retired for outcome in outcomes)
    nuclei = sum(outcome.num_nuclei for outcome in outcomes)
    new = "new " if skipped else ""
    print(
        f"{done} of {len(outcomes) + num_left} files: {planes} {new}images with "
        f"{nuclei:,} {new}nuclei"
        f"{f', {skipped} finished before' if skipped else ''} -> {folder}"
    )
    if parts:
        print(
            f"{parts} of the files are parts of an OME-TIFF that begins in another "
            "file, with which their images are segmented"
        )
    tell_retired(retired)
    for outcome in failed:
        print(f"error: {outcome.error}", file=sys.stderr)
    if num_left:
        print(f"{num_left} files: {output_folder.LEFT}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    shared.run(main)
