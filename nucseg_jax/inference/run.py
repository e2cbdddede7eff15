"""The loop over many files: read, segment, write, and go on where it stopped."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
import pathlib
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

from nucseg_jax.data.errors import ImageError
from nucseg_jax.data.planes import (
    ZARR_SUFFIX,
    Plane,
    can_open,
    check_pixel_size,
    open_planes,
)
from nucseg_jax.inference import outputs
from nucseg_jax.inference.outputs import summaries
from nucseg_jax.inference.outputs.nuclei import Nuclei
from nucseg_jax.inference.scaling import check_scale
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


@dataclasses.dataclass(frozen=True)
class Job:
    """One file to segment.

    Attributes:
      image: The file.
      relative: The same, relative to the folder that was searched.
      name: Of its results below each output folder, without ending.
      is_alone: Whether the file was named, not found in a folder. If it is a part of an
        OME-TIFF in several files, pictures that lie in other parts are its own, too.
    """

    image: pathlib.Path
    relative: pathlib.PurePath
    name: pathlib.PurePath
    is_alone: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one file.

    Attributes:
      job: Which.
      num_nuclei: Newly found, in all its planes.
      num_planes: Newly segmented.
      num_skipped: Planes that were finished before.
      num_elsewhere: Planes that are left to another file, in which they begin.
      error: Why it could not be finished; "" if it was.
    """

    job: Job
    num_nuclei: int = 0
    num_planes: int = 0
    num_skipped: int = 0
    num_elsewhere: int = 0
    error: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to do with each file.

    Attributes:
      save: Names of `outputs.PRODUCTS`.
      channel: Which channel to look at, see `open_planes`.
      axes: What the axes of a stack are, see `open_planes`.
      pixel_size: Micrometres a pixel, instead of what files say; None = as they say.
      scale: Resize by this factor for the network; None = by the pixel sizes of the
        image and of the training images, where both are known.
      max_pixels: Refuse larger images of a kind that is decoded as a whole.

    Raises:
      ValueError: If the pixel size or the scale cannot be.
    """

    save: Sequence[str]
    channel: str | None = None
    axes: str | None = None
    pixel_size: float | None = None
    scale: float | None = None
    max_pixels: int

    def __post_init__(self):
        check_pixel_size(self.pixel_size)
        if self.scale is not None:
            check_scale(self.scale)


def find_jobs(source: str | os.PathLike) -> list[Job]:
    """Lists the images of a file or folder, subfolders included, in name order.

    Links are followed; subfolders with results of earlier runs are left out. Results
    keep the image's name; where two would share one, as of a.jpg and a.tif, the ending
    stays in it.

    Raises:
      ImageError: If there is no such file or folder, no image in it, or a folder that
        may not be read.
    """
    root = pathlib.Path(source)
    if root.is_file() or (root.is_dir() and _is_zarr(root.name)):
        relative = pathlib.PurePath(root.name)
        return [Job(root, relative, relative.with_suffix(""), is_alone=True)]
    if not root.is_dir():
        raise ImageError(f"{root}: no such file or folder")
    found = sorted(_walk_images(root))
    if not found:
        raise ImageError(f"{root}: holds no image (PNG, JPEG, BMP, TIFF or OME-Zarr)")
    names = _name_results(found)
    return [
        Job(root / path, path, name) for path, name in zip(found, names, strict=True)
    ]


def select_shard(jobs: Sequence[Job], num_shards: int, shard_index: int) -> list[Job]:
    """Takes every `num_shards`-th job, beginning with the `shard_index`-th.

    Raises:
      ValueError: If there is no such shard.
    """
    if not 0 <= shard_index < num_shards:
        raise ValueError(
            f"shard_index is {shard_index}; with {num_shards} shard(s) it must be 0 to "
            f"{num_shards - 1}"
        )
    return list(jobs[shard_index::num_shards])


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
    run = _Run(segmenter, pathlib.Path(output), options, watch)
    yield from _map_ahead(run.segment_file, jobs)


def _map_ahead(
    work: Callable[[Job], Outcome], jobs: Sequence[Job]
) -> Iterator[Outcome]:
    """Maps in threads and in order, a few jobs ahead of the results taken."""
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
        pool.shutdown(cancel_futures=True)


class _Run:
    """What all files of a run share; its methods may run in several threads."""

    def __init__(
        self,
        segmenter: Segmenter,
        output: pathlib.Path,
        options: Options,
        watch: Watch,
    ):
        self._segmenter = segmenter
        self._output = output
        self._options = options
        self._watch = watch
        self._one_large_plane = threading.Lock()
        self._claims: dict[pathlib.PurePath, Job] = {}

    def segment_file(self, job: Job) -> Outcome:
        """Segments all planes of a file that are not finished."""
        outcome = Outcome(job)
        try:
            with open_job(job, self._options) as planes:
                own = [plane for plane in planes if is_own(job, plane)]
                outcome = Outcome(job, num_elsewhere=len(planes) - len(own))
                stamp = take_stamp(job.image, own)
                for plane in own:
                    outcome = self._count_plane(outcome, plane, stamp)
        except ImageError as error:
            return dataclasses.replace(outcome, error=str(error))
        return outcome

    def _count_plane(self, outcome: Outcome, plane: Plane, stamp: str) -> Outcome:
        job = outcome.job
        name = job.name.with_name(job.name.name + plane.suffix)
        if self._claims.setdefault(name, job) is not job:
            raise ImageError(
                f"{job.image}: its results would have the name {name} of those of "
                f"{self._claims[name].image}; rename one of the files"
            )
        info = describe(job, plane, self._segmenter.targets, stamp)
        if is_done(self._output, name, info, self._options.save):
            return dataclasses.replace(outcome, num_skipped=outcome.num_skipped + 1)
        is_large = plane.shape[0] * plane.shape[1] > _LARGE_PLANE
        with self._one_large_plane if is_large else contextlib.nullcontext():
            count = self._segment_plane(plane, info, name)
        return dataclasses.replace(
            outcome,
            num_planes=outcome.num_planes + 1,
            num_nuclei=outcome.num_nuclei + count,
        )

    def _segment_plane(
        self, plane: Plane, info: PlaneInfo, name: pathlib.PurePath
    ) -> int:
        """Segments a plane and writes its products; returns the number of nuclei."""
        scale = self._options.scale or self._segmenter.choose_scale(plane.pixel_size)
        count, started = 0, time.perf_counter()
        with (
            self._watch(info) as tell_tiles,
            outputs.create_writers(
                self._options.save, self._output, name, info, started=started
            ) as writers,
        ):
            for item in self._segmenter.stream(
                plane, scale=scale, tell_tiles=tell_tiles
            ):
                if isinstance(item, Window):
                    count = max(count, int(item.labels.max(initial=0)))
                    writers.add_nuclei(Nuclei(item, info))
                else:
                    writers.add_band(item)
        return count


@contextlib.contextmanager
def open_job(job: Job, options: Options) -> Iterator[list[Plane]]:
    """Opens the planes of a file as the options say; see `open_planes`."""
    with open_planes(
        job.image,
        channel=options.channel,
        axes=options.axes,
        max_pixels=options.max_pixels,
    ) as planes:
        size = options.pixel_size
        if size is not None:
            planes = [dataclasses.replace(p, pixel_size=size) for p in planes]
        yield planes


def is_own(job: Job, plane: Plane) -> bool:
    """Tells whether a plane is left to its file, and not to another of the folder.

    Each part of an OME-TIFF in several files may open as the whole: its planes are
    those of the first part that is found beside the file.
    """
    if job.is_alone:
        return True
    for part in plane.files:
        beside = job.image.with_name(part.name)
        if can_open(beside) and beside.exists() and beside.samefile(part):
            return beside.samefile(job.image)
    return True


def take_stamp(image: pathlib.Path, planes: Iterable[Plane]) -> str:
    """Tells size and last change of the files that hold planes, all together.

    These are all files of an OME-Zarr, and the parts of an OME-TIFF. Results belong to
    a file as it was: where it lies may change, this not.

    Raises:
      ImageError: If it cannot be looked at.
    """
    # Planes of one series share them.
    shared = {id(plane.files): plane.files for plane in planes}
    parts = {image, *itertools.chain(*shared.values())}
    try:
        inside = (
            os.path.join(folder, name)
            for folder, _, names in os.walk(image)
            for name in names
        )
        states = [os.stat(path) for path in inside] or [p.stat() for p in parts]
    except OSError as error:
        raise ImageError(f"{image}: {error.strerror}") from error
    latest = max(state.st_mtime_ns for state in states)
    return f"{sum(state.st_size for state in states)} bytes, {latest} ns"


def describe(job: Job, plane: Plane, targets: tuple[str, ...], stamp: str) -> PlaneInfo:
    """Tells what outputs need to know of a plane of a file."""
    return PlaneInfo(
        name=(job.relative.parent / plane.name).as_posix(),
        source=job.image.absolute(),
        height=plane.shape[0],
        width=plane.shape[1],
        channels=plane.channels,
        pixel_size=plane.pixel_size,
        targets=targets,
        stamp=stamp,
    )


def is_done(
    output: pathlib.Path, name: pathlib.PurePath, info: PlaneInfo, save: Sequence[str]
) -> bool:
    """Tells whether all products of a plane of this very file are there.

    Raises:
      ImageError: If results of another file have that name.
    """
    if outputs.is_finished(output, name, save, info.stamp):
        return True
    _check_name_is_free(output, name, info)
    return False


def _check_name_is_free(
    output: pathlib.Path, name: pathlib.PurePath, info: PlaneInfo
) -> None:
    """Lets results of the same file, which has changed, be replaced, but no others."""
    with contextlib.suppress(FileNotFoundError, summaries.SummaryError):
        summary = summaries.read_summary(summaries.summary_path(output, name))
        before = pathlib.Path(summary["source"])
        is_same = info.stamp == summary["stamp"]
        if not is_same and before != info.source:
            raise ImageError(
                f"{info.source}: {output} holds the results of {before} under the same "
                f"name, {name}: give another --output"
            )


def _walk_images(root: pathlib.Path) -> Iterator[pathlib.PurePath]:
    """Yields the images below a folder, relative to it; hidden ones are left out."""

    def refuse(error: OSError) -> None:
        raise ImageError(f"{error.filename}: cannot be searched ({error.strerror})")

    top, seen = os.path.realpath(root), set()
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        if (place := os.path.realpath(folder)) in seen:  # Links may lead in circles.
            subfolders.clear()
            continue
        seen.add(place)
        subfolders.sort()
        found = [name for name in subfolders if _is_zarr(name)]
        # An OME-Zarr is a folder, and one image.
        subfolders[:] = [
            name
            for name in subfolders
            if name not in found
            and name[0] != "."
            and not _leads_inside(os.path.join(folder, name), top)
            and not outputs.holds_results(pathlib.Path(folder, name))
        ]
        found += [name for name in names if can_open(pathlib.Path(name))]
        for name in found:
            yield pathlib.PurePath(folder, name).relative_to(root)


def _leads_inside(path: str, top: str) -> bool:
    """Tells if a path is a link to a folder below `top`, which is found anyway."""
    target = pathlib.Path(os.path.realpath(path))
    return os.path.islink(path) and target.is_relative_to(top)


def _is_zarr(folder: str) -> bool:
    return folder.lower().endswith(ZARR_SUFFIX) and folder[0] != "."


def _name_results(paths: Sequence[pathlib.PurePath]) -> list[pathlib.PurePath]:
    """Names each result so that no two are the same, on any file system.

    A folder of images may be called like a file of results: "a.tif".
    """
    short = [path.with_suffix("") for path in paths]
    folders = {folder for path in paths for folder in path.parents if folder.name}
    alike = [f for f in folders if f.suffix.lower() in outputs.SUFFIXES]
    taken = [*short, *paths, *(folder.with_suffix("") for folder in alike)]
    uses = collections.Counter(str(path).casefold() for path in taken)
    return [
        name if uses[str(name).casefold()] == 1 else path
        for name, path in zip(short, paths, strict=True)
    ]
