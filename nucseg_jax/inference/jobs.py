"""The files to segment: which they are, how they open, and which are done."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import os
import pathlib
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from nucseg_jax.data.errors import ImageError
from nucseg_jax.data.planes import (
    Plane,
    can_open,
    check_pixel_size,
    is_called_zarr,
    is_foreign,
    is_image_folder,
    open_planes,
)
from nucseg_jax.inference import outputs
from nucseg_jax.inference.outputs import summaries
from nucseg_jax.inference.scaling import check_scale
from nucseg_jax.inference.streams import PlaneInfo

_CHECKED_BYTES = 1 << 14


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

    def result_name(self, suffix: str) -> pathlib.PurePath:
        """Name of the results of one of its planes, which has this suffix."""
        return self.name.with_name(self.name.name + suffix)


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
      settings: Which settings all of this is, and the network: kept with each result,
        and results of others are not taken for finished. "" = not told.

    Raises:
      ValueError: If the pixel size or the scale is out of range.
    """

    save: Sequence[str]
    channel: str | None = None
    axes: str | None = None
    pixel_size: float | None = None
    scale: float | None = None
    max_pixels: int
    settings: str = ""

    def __post_init__(self):
        check_pixel_size(self.pixel_size)
        if self.scale is not None:
            check_scale(self.scale)


class Found(NamedTuple):
    """What there is in a folder, in name order.

    Attributes:
      jobs: The images.
      foreign: Images of kinds that cannot be opened, by their names and relative to the
        folder.
    """

    jobs: list[Job]
    foreign: list[pathlib.PurePath]


def find_jobs(source: str | os.PathLike) -> Found:
    """Finds the image of a file, or those of a folder, subfolders included.

    Links are followed; what earlier runs have made of images is left out. Results
    keep the image's name; where two would share one, as of a.jpg and a.tif, the ending
    stays in it.

    Raises:
      ImageError: If there is no such file or folder, no image in it, or a folder that
        may not be read.
    """
    root = pathlib.Path(source)
    if root.is_file() or is_image_folder(root):
        root = root if root.name else root.resolve()
        relative = pathlib.PurePath(root.name)
        return Found([Job(root, relative, relative.with_suffix(""), is_alone=True)], [])
    if not root.is_dir():
        raise ImageError(f"{root}: no such file or folder")
    paths = sorted(_walk(root))
    images = [path for path in paths if can_open(path)]
    foreign = [path for path in paths if is_foreign(path)]
    if not images:
        kinds = sorted({path.suffix.lower() for path in foreign})
        others = f", but {', '.join(kinds)}: save them as TIFF" if kinds else ""
        raise ImageError(
            f"{root}: holds no image (PNG, JPEG, BMP, TIFF or OME-Zarr){others}"
        )
    named = zip(images, _name_results(images), strict=True)
    return Found([Job(root / path, path, name) for path, name in named], foreign)


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
    """Tells size, last change and a checksum of the files that hold planes, together.

    These are all files of an OME-Zarr, and the parts of an OME-TIFF. Results belong to
    a file as it was: where it lies may change, this not. The checksum is of some bytes,
    for images of a camera are alike in size, and archives know times to two seconds; in
    a folder, which may have millions of files, of their names, sizes and times.

    Raises:
      ImageError: If it cannot be looked at.
    """
    try:
        if image.is_dir():
            return _stamp_folder(image)
        # Planes of one series share them, with links resolved.
        shared = {id(plane.files): plane.files for plane in planes}
        return _stamp_files({image.resolve(), *itertools.chain(*shared.values())})
    except OSError as error:
        raise ImageError(f"{image}: {error.strerror}") from error


def _stamp_folder(folder: pathlib.Path) -> str:
    size = latest = checksum = 0
    for parent, _, names in os.walk(folder):
        within = os.path.relpath(parent, folder)
        for name in names:
            state = os.stat(os.path.join(parent, name))
            size += state.st_size
            latest = max(latest, state.st_mtime_ns)
            relative = os.fsencode(os.path.join(within, name))
            entry = b"%s %d %d" % (relative, state.st_size, state.st_mtime_ns)
            # A sum, as folders are listed in any order.
            checksum = (checksum + zlib.crc32(entry)) % (1 << 32)
    return _format_stamp(size, latest, checksum)


def _stamp_files(paths: Collection[pathlib.Path]) -> str:
    states = [path.stat() for path in paths]
    checksum = 0
    for path in sorted(paths, key=lambda path: (path.name, path)):
        checksum = _add_checksum(path, checksum)
    latest = max(state.st_mtime_ns for state in states)
    return _format_stamp(sum(state.st_size for state in states), latest, checksum)


def _format_stamp(size: int, latest: int, checksum: int) -> str:
    return f"{size} bytes, {latest} ns, {checksum:08x}"


def _add_checksum(path: pathlib.Path, checksum: int) -> int:
    """Goes on with the CRC-32 of the bytes at the start, middle and end of a file."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        for place in (0, size // 2, max(size - _CHECKED_BYTES, 0)):
            file.seek(place)
            checksum = zlib.crc32(file.read(_CHECKED_BYTES), checksum)
    return checksum


def describe(
    job: Job,
    plane: Plane,
    options: Options,
    *,
    targets: tuple[str, ...],
    scale: float,
    stamp: str,
) -> PlaneInfo:
    """Tells what outputs need to know of a plane of a file."""
    return PlaneInfo(
        name=(job.relative.parent / plane.name).as_posix(),
        source=job.image.absolute(),
        height=plane.shape[0],
        width=plane.shape[1],
        channels=plane.channels,
        seen=tuple(plane.channels[number] for number in plane.segmented),
        pixel_size=plane.pixel_size,
        targets=targets,
        scale=scale,
        stamp=stamp,
        settings=options.settings,
    )


def resolve_folder(path: pathlib.Path) -> pathlib.Path:
    """The one path of a file, whichever way its folder was reached.

    A link that is the file stays: several may lead to one, each an image by itself.
    """
    return pathlib.Path(os.path.realpath(path.parent), path.name)


def is_done(
    output: pathlib.Path,
    name: pathlib.PurePath,
    job: Job,
    stamp: str,
    options: Options,
) -> bool:
    """Tells whether all products of a plane of this very file are there.

    Args:
      output: The output folder.
      name: Of the plane's results.
      job: The file.
      stamp: Of the file.
      options: Which products, and of which settings.

    Raises:
      ImageError: If results of another file have that name.
    """
    if outputs.is_finished(output, name, options.save, stamp, options.settings):
        return True
    _check_name_is_free(output, name, job, stamp)
    return False


def _check_name_is_free(
    output: pathlib.Path, name: pathlib.PurePath, job: Job, stamp: str
) -> None:
    """Lets results of the same file, which has changed, be replaced, but no others."""
    with contextlib.suppress(FileNotFoundError, summaries.SummaryError):
        summary = summaries.read_summary(summaries.summary_path(output, name))
        before, source = pathlib.Path(summary["source"]), job.image.absolute()
        is_same = resolve_folder(before) == resolve_folder(source)
        if stamp != summary["stamp"] and not is_same:
            raise ImageError(
                f"{source}: {output} holds the results of {before} under the same "
                f"name, {name}: give another --output"
            )


def _walk(root: pathlib.Path) -> Iterator[pathlib.PurePath]:
    """Yields files and OME-Zarr below a folder, relative to it."""

    def refuse(error: OSError) -> None:
        raise ImageError(f"{error.filename}: cannot be searched ({error.strerror})")

    top, seen = os.path.realpath(root), set()
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        if (place := os.path.realpath(folder)) in seen:  # Links may lead in circles.
            subfolders.clear()
            continue
        seen.add(place)
        if outputs.holds_results(pathlib.Path(folder)):
            subfolders[:] = set(subfolders) - outputs.FOLDERS
        subfolders.sort()
        found = [n for n in subfolders if is_called_zarr(pathlib.PurePath(n))]
        # An OME-Zarr is a folder, and one image.
        subfolders[:] = [
            name
            for name in subfolders
            if name not in found
            and name[0] != "."
            and not _leads_inside(os.path.join(folder, name), top)
        ]
        for name in found + names:
            yield pathlib.PurePath(folder, name).relative_to(root)


def _leads_inside(path: str, top: str) -> bool:
    """Tells if a path is a link to a folder below `top`, which is found anyway."""
    if not os.path.islink(path):
        return False
    return pathlib.Path(os.path.realpath(path)).is_relative_to(top)


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
