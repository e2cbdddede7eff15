"""The loop over many files: read, segment, write, and go on where it stopped."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import os
import pathlib
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence

from nucseg_jax.data.errors import ImageError
from nucseg_jax.data.hue import in_gray
from nucseg_jax.data.planes import Plane
from nucseg_jax.inference import outputs
from nucseg_jax.inference.earlier_results import EarlierResults
from nucseg_jax.inference.jobs import (
    Job,
    Options,
    describe,
    is_done,
    is_own,
    open_job,
    take_stamp,
)
from nucseg_jax.inference.outputs.nuclei import Nuclei
from nucseg_jax.inference.record import FileRecord, Outcome
from nucseg_jax.inference.segmenter import Segmenter
from nucseg_jax.inference.streams import PlaneInfo, Window
from nucseg_jax.inference.tile_predictor import TellTiles

# Files in work at a time: while one computes, the others read and write.
_THREADS = 2
# Planes above this many pixels are segmented one at a time, for their memory.
_LARGE_PLANE = 1 << 24

# Gives a context around all work on a plane, and whom to tell of its tiles.
Watch = Callable[[PlaneInfo], contextlib.AbstractContextManager[TellTiles]]


def _watch_nothing(info: PlaneInfo) -> contextlib.AbstractContextManager[TellTiles]:
    return contextlib.nullcontext(lambda done, total: None)


def segment_files(
    jobs: Sequence[Job],
    segmenter: Segmenter,
    output: str | os.PathLike,
    options: Options,
    *,
    watch: Watch = _watch_nothing,
) -> Generator[Outcome, None, None]:
    """Segments files and writes their products; finished ones are skipped.

    A file that cannot be read does not end the run: its outcome tells why. One that
    cannot be written does.

    Args:
      jobs: From `find_jobs`.
      segmenter: The trained network.
      output: Folder for the products.
      options: What to do with each.
      watch: Called with each plane before work on it begins, in any thread. The
        context that it returns is left when the plane's files are written, or cannot
        be; what that gives is told of the plane's tiles, see `Segmenter.stream`.

    Yields:
      One outcome a job, in their order.

    Raises:
      OSError: If a result cannot be written.
    """
    stop = threading.Event()
    run = _Run(segmenter, pathlib.Path(output), options, watch, stop)
    yield from _map_ahead(run.segment_file, jobs, stop)


def _map_ahead(
    work: Callable[[Job], Outcome], jobs: Sequence[Job], stop: threading.Event
) -> Iterator[Outcome]:
    """Maps in threads and in order, a few jobs ahead of the results taken.

    At the end, whatever brings it, work that is not done is told to stop.
    """
    pending: collections.deque[concurrent.futures.Future[Outcome]] = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
    try:
        for job in jobs:
            pending.append(pool.submit(work, job))
            if len(pending) > _THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


class _Run:
    """What all files of a run share; its methods may run in several threads."""

    def __init__(
        self,
        segmenter: Segmenter,
        output: pathlib.Path,
        options: Options,
        watch: Watch,
        stop: threading.Event,
    ):
        self._segmenter = segmenter
        self._output = output
        self._options = options
        self._watch = watch
        self._stop = stop
        self._earlier = EarlierResults(output)
        self._one_large_plane = threading.Lock()
        self._claims: dict[pathlib.PurePath, Job] = {}

    def segment_file(self, job: Job) -> Outcome:
        """Segments all planes of a file that are not finished."""
        record = FileRecord(job, self._earlier)
        with record.catching(), open_job(job, self._options) as planes:
            own = [plane for plane in planes if is_own(job, plane)]
            stamp = take_stamp(job.image, own)
            names = [job.result_name(plane.suffix) for plane in own]
            record.begin(stamp, names, num_elsewhere=len(planes) - len(own))
            for plane, name in zip(own, names, strict=True):
                with record.catching():
                    self._claim(name, job)
                    if is_done(self._output, name, job, stamp, self._options):
                        record.skip()
                    else:
                        record.add(name, self._segment_alone(job, plane, stamp))
            record.check(lambda: take_stamp(job.image, own))
        return record.finish()

    def _claim(self, name: pathlib.PurePath, job: Job) -> None:
        """Refuses a name that results of another file of the run have."""
        if self._claims.setdefault(name, job) is not job:
            raise ImageError(
                f"{job.image}: its results would have the name {name} of those of "
                f"{self._claims[name].image}; rename one of the files"
            )

    def _segment_alone(self, job: Job, plane: Plane, stamp: str) -> int:
        """Segments a plane; a large one while no other large one is in memory."""
        is_large = plane.shape[0] * plane.shape[1] > _LARGE_PLANE
        with self._one_large_plane if is_large else contextlib.nullcontext():
            return self._segment_plane(job, plane, stamp)

    def _segment_plane(self, job: Job, plane: Plane, stamp: str) -> int:
        """Segments a plane and writes its products; returns the number of nuclei."""
        count, started = 0, time.perf_counter()
        plane, name = in_gray(plane), job.result_name(plane.suffix)
        info = describe(
            job,
            plane,
            self._options,
            targets=self._segmenter.targets,
            scale=self._options.scale or self._segmenter.choose_scale(plane.pixel_size),
            stamp=stamp,
        )
        with (
            self._watch(info) as tell_tiles,
            outputs.create_writers(
                self._options.save, self._output, name, info, started=started
            ) as writers,
        ):
            for item in self._segmenter.stream(
                plane, scale=info.scale, tell_tiles=self._stoppable(tell_tiles)
            ):
                if isinstance(item, Window):
                    count = max(count, int(item.labels.max(initial=0)))
                    writers.add_nuclei(Nuclei(item, info))
                else:
                    writers.add_band(item)
        return count

    def _stoppable(self, tell_tiles: TellTiles) -> TellTiles:
        """Ends the work on a plane at its next tile when the run has ended."""

        def tell(done: int, total: int) -> None:
            if self._stop.is_set():
                raise _StoppedError
            tell_tiles(done, total)

        return tell


class _StoppedError(Exception):
    """The run has ended; nobody waits for the result."""
