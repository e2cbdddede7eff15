"""One large image on a Dask cluster: its blocks are tasks, its label image is one.

The scheduler sees no pixel: tasks read and write by path, so all workers need the
image, the network and the output folder under the same names. What a block must know of
its neighbours (`blocks`) orders the tasks; when and where each is done changes nothing
in the result. Results of blocks are kept in a scratch folder until all are done: after
a break, the same call goes on with what is there.

Such a folder belongs to one plan, by its name: late tasks of an earlier run, with other
settings, write elsewhere. The label image, which is written once more at each try,
belongs to one run.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import distributed
import numpy as np

import nucseg_jax
from nucseg_jax import files
from nucseg_jax.digests import digest_json
from nucseg_jax.inference import block_tasks, outputs
from nucseg_jax.inference.block_tasks import Description, Network, Source, Work
from nucseg_jax.inference.blocks import Block, Blocks, number_blocks, round_of
from nucseg_jax.inference.contrast import Contrast, make_contrast
from nucseg_jax.inference.earlier_results import EarlierResults
from nucseg_jax.inference.jobs import Job, Options, is_done
from nucseg_jax.inference.outputs.labels_zarr import CHUNK, create_pyramid
from nucseg_jax.inference.outputs.nuclei import column_names
from nucseg_jax.inference.outputs.summaries import summary_path
from nucseg_jax.inference.outputs.tables import format_summary
from nucseg_jax.inference.record import FileRecord, Outcome
from nucseg_jax.inference.streams import PlaneInfo

SAVE = ("labels_zarr", "table")
_LETTERS = 16  # Of a digest, in the name of a folder.
Key = TypeVar("Key", bound=Hashable)
# (name of the plane, stage of the work, tasks done, tasks in all)
TellProgress = Callable[[str, str, int, int], None]


class ClusterError(OSError):
    """The cluster cannot do its work."""


def segment_image(
    client: distributed.Client,
    job: Job,
    network: Network,
    output: str | os.PathLike,
    options: Options,
    *,
    side: int = 4096,
    tell_progress: TellProgress = lambda name, stage, done, total: None,
) -> Outcome:
    """Segments an image and writes its labels and its table; finished ones are skipped.

    If it cannot be read, or the network needs it as a whole, the outcome tells so.

    Args:
      client: Of the cluster.
      job: The image, by an absolute path; see `jobs.find_jobs`.
      network: What finds the nuclei; a folder by an absolute path.
      output: Folder for the results, which all workers can write to.
      options: How to read it; what they say to save is `SAVE`.
      side: Of a block, pixels; a multiple of `labels_zarr.CHUNK`.
      tell_progress: Called after each task.

    Raises:
      ValueError: If blocks cannot be of that size.
      CheckpointError: If there is no readable network.
      OSError: If results cannot be written, or workers died again and again.
    """
    if side % CHUNK:
        raise ValueError(
            f"blocks of {side} pixels: the side must be a multiple of {CHUNK}"
        )
    run = _Run(client, network, pathlib.Path(output).absolute(), side, tell_progress)
    options = dataclasses.replace(options, save=SAVE)
    record = FileRecord(job, EarlierResults(run.output))
    with record.catching():
        planes = run.do(job, block_tasks.describe_planes, job, options, network)
        names = {k: job.result_name(p.suffix) for k, p in enumerate(planes) if p.is_own}
        stamp = planes[0].info.stamp
        record.begin(stamp, names.values(), num_elsewhere=len(planes) - len(names))
        for index, name in names.items():
            with record.catching():
                if is_done(run.output, name, job, stamp, options):
                    # What a run that was killed at its very end has left.
                    _remove_scratch(run.output, name)
                    record.skip()
                    continue
                source = Source(job, index, options, planes[index].segmented)
                count = run.segment_plane(source, planes[index], name)
                record.add(name, count)
        record.check(lambda: run.do(job, block_tasks.find_stamp, job, options))
    return record.finish()


@dataclasses.dataclass(frozen=True)
class _Run:
    """What all planes of a run share."""

    client: distributed.Client
    network: Network
    output: pathlib.Path
    side: int
    tell_progress: TellProgress

    def segment_plane(
        self, source: Source, plane: Description, name: pathlib.PurePath
    ) -> int:
        """Segments a plane and writes its products; returns the number of nuclei."""
        started = time.perf_counter()
        work = self.plan(source, plane, _scratch(self.output, name))
        _start_scratch(work)
        counts = self.segment_blocks(work)
        paths = _product_paths(self.output, name, work.info)
        # Beside its place, for the scratch folder may lie on another disk.
        pyramid = files.temporary_path(paths["labels_zarr"])
        try:
            self.write_blocks(work, pyramid, number_blocks(counts))
            _publish(work, pyramid, self.output, name, started=started)
        finally:
            files.remove(pyramid)
        _remove_scratch(self.output, name)
        return sum(counts.values())

    def plan(self, source: Source, plane: Description, scratch: pathlib.Path) -> Work:
        """Divides a plane, and finds what its values become.

        Args:
          source: The plane.
          plane: What is known of it.
          scratch: Folder for the folders of its plans.
        """
        info = plane.info
        blocks = Blocks(info.height, info.width, self.side, plane.halo, plane.rim)
        work = Work(
            source=source,
            network=self.network,
            info=info,
            blocks=blocks,
            contrast=self.measure_contrast(source, plane, blocks),
            scratch=scratch,
        )
        which = digest_json([repr(work), nucseg_jax.__version__])[:_LETTERS]
        return dataclasses.replace(work, scratch=scratch / which)

    def measure_contrast(
        self, source: Source, plane: Description, blocks: Blocks
    ) -> Contrast:
        """Finds what values become, over the whole plane."""
        value_range = self.do(source.job, block_tasks.find_range, source)
        if plane.normalization == "none":
            return Contrast(value_range)
        tasks = {
            block: self.submit(
                block_tasks.count_values, source, value_range, blocks.core(block)
            )
            for block in blocks.places
        }
        counts = self.gather(tasks, plane.info.name, "contrast")
        total = np.sum(list(counts.values()), axis=0)
        return make_contrast(value_range, total, plane.normalization)

    def segment_blocks(self, work: Work) -> dict[Block, int]:
        """Finds the nuclei of all blocks; returns how many each has."""
        tasks: dict[Block, distributed.Future] = {}
        for block in sorted(work.blocks.places, key=round_of):
            before = {place: tasks[place] for place in work.blocks.before(block)}
            tasks[block] = self.submit(block_tasks.segment_block, work, block, before)
        return self.gather(tasks, work.info.name, "segmenting")

    def write_blocks(
        self, work: Work, pyramid: pathlib.Path, firsts: Mapping[Block, int]
    ) -> None:
        """Writes the label image level by level, and the rows of the table."""
        with files.naming(pyramid):
            arrays = create_pyramid(pyramid, work.info)
        tasks = {}
        for block in work.blocks.places:
            around = {place: firsts[place] for place in work.blocks.around(block)}
            tasks[block] = self.submit(
                block_tasks.write_block, work, pyramid, block, around
            )
        self.gather(tasks, work.info.name, "writing")
        for level, array in enumerate(arrays[1:], start=1):
            parts = Blocks(*array.shape, side=self.side, halo=0)
            tasks = {
                place: self.submit(
                    block_tasks.shrink_part, pyramid, level, parts.core(place)
                )
                for place in parts.places
            }
            self.gather(tasks, work.info.name, f"level {level}")

    def submit(self, task: Callable, *args: Any) -> distributed.Future:
        """Sends a task off. Not pure: files that it wrote once may be gone by now."""
        return self.client.submit(task, *args, pure=False)

    def do(self, job: Job, task: Callable, *args: Any) -> Any:
        """Does one task and returns its result."""
        tasks = {job: self.submit(task, *args)}
        return self.gather(tasks, job.relative.as_posix(), "reading")[job]

    def gather(
        self, tasks: Mapping[Key, distributed.Future], name: str, stage: str
    ) -> dict[Key, Any]:
        """Waits for tasks; the first error ends them all."""
        keys = {future.key: key for key, future in tasks.items()}
        results = {}
        try:
            for future, result in distributed.as_completed(
                tasks.values(), with_results=True
            ):
                results[keys[future.key]] = result
                self.tell_progress(name, stage, len(results), len(tasks))
        except distributed.KilledWorker as error:
            raise ClusterError(
                "workers died at the same task again and again, maybe for lack of "
                f"memory: see their logs, or take smaller blocks ({error})"
            ) from error
        finally:
            self.client.cancel(list(tasks.values()))
        return results


def _scratch(output: pathlib.Path, name: pathlib.PurePath) -> pathlib.Path:
    """The folder for the plans of an image; none lies in that of another image."""
    return output / outputs.BLOCKS / digest_json(name.as_posix())[:_LETTERS]


def _start_scratch(work: Work) -> None:
    """Makes the folder of blocks; what other plans have left is removed."""
    with files.naming(work.scratch):
        work.scratch.mkdir(parents=True, exist_ok=True)
        for other in set(work.scratch.parent.iterdir()) - {work.scratch}:
            files.remove(other)


def _remove_scratch(output: pathlib.Path, name: pathlib.PurePath) -> None:
    files.remove(_scratch(output, name))
    # The folder above it, if it is empty.
    with contextlib.suppress(OSError):
        (output / outputs.BLOCKS).rmdir()


def _product_paths(
    output: pathlib.Path, name: pathlib.PurePath, info: PlaneInfo
) -> dict[str, pathlib.Path]:
    products = {product.name: product for product in outputs.PRODUCTS}
    return {kind: products[kind].path(output, name, info) for kind in SAVE}


def _publish(
    work: Work,
    pyramid: pathlib.Path,
    output: pathlib.Path,
    name: pathlib.PurePath,
    *,
    started: float,
) -> None:
    """Gives the finished files their names, the summary last: it says "done"."""
    paths = _product_paths(output, name, work.info)
    told = {kind: path.relative_to(output).as_posix() for kind, path in paths.items()}
    summary = summary_path(output, name)
    files.remove(summary)
    with files.naming(paths["labels_zarr"]):
        files.remove(paths["labels_zarr"])
        os.replace(pyramid, paths["labels_zarr"])
    areas = _join_tables(work, paths["table"])
    with files.writing_text(summary) as file:
        file.write(format_summary(work.info, areas, told, started=started))


def _join_tables(work: Work, path: pathlib.Path) -> np.ndarray:
    """Writes the table of all blocks; returns the areas of all nuclei."""
    areas = [np.zeros(0)]
    with files.writing_text(path) as table:
        header = column_names(work.info)
        csv.writer(table, lineterminator="\n").writerow(header)
        for block in work.blocks.places:
            with open(work.path(block, ".csv"), newline="", **files.TEXT) as rows:
                shutil.copyfileobj(rows, table)
            areas.append(block_tasks.load_table(work, block)["area"])
    return np.concatenate(areas)
