"""What is done to one block of an image, in a process of its own.

Every task reads pixels from the image and writes its results to files, all by path; its
arguments and what it returns are small. It writes the same whenever it is repeated,
only files of its own, and each whole or not at all: so a task may be repeated, also
while an earlier try still runs somewhere.

Files of a block in the scratch folder: `*.npy`, its own nuclei, int32 of its region,
numbered from 1; `*.npz`, their measurements; `*.csv`, their rows of the final table.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import pathlib
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
import zarr

from nucseg_jax import pretrained
from nucseg_jax.checkpoints import read_digest
from nucseg_jax.config import Dtype, Mode
from nucseg_jax.data.hue import in_gray
from nucseg_jax.data.intensity import intensity_range
from nucseg_jax.data.planes import Plane
from nucseg_jax.files import replacing, writing_text
from nucseg_jax.inference import contrast
from nucseg_jax.inference.blocks import Block, Blocks, assemble, claim
from nucseg_jax.inference.jobs import (
    Job,
    Options,
    describe,
    is_own,
    open_job,
    take_stamp,
)
from nucseg_jax.inference.outputs.labels_zarr import CHUNK
from nucseg_jax.inference.outputs.nuclei import Nuclei
from nucseg_jax.inference.outputs.tables import format_rows
from nucseg_jax.inference.segmenter import (
    Segmenter,
    choose_halo,
    choose_rim,
    load_segmenter,
)
from nucseg_jax.inference.streams import PlaneInfo, Window

_loading = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Network:
    """What is told of a network, see `load_segmenter`; a process loads it once.

    It is named, as machines with other devices would choose another one.

    Attributes:
      checkpoint: Folder of the run, or name of a network of the project's.
      digest: Which one is meant of those that may lie there in time, see `find`.
      mode: As `load_segmenter` takes it, as all that follow.
      threshold: Least probability of a nucleus.
      tta: Views.
      tile: Side of the tiles, pixels.
      dtype: Of the computation.
    """

    checkpoint: str
    digest: str
    mode: Mode | None = None
    threshold: float | None = None
    tta: int = 1
    tile: int | None = None
    dtype: Dtype | None = None

    @classmethod
    def find(cls, checkpoint: str, **settings: Any) -> Network:
        """Means the network that lies there now.

        Raises:
          CheckpointError: If there is no readable network.
        """
        digest = read_digest(pretrained.resolve(checkpoint))
        return cls(checkpoint, digest, **settings)

    def load(self) -> Segmenter:
        """Loads it.

        Raises:
          CheckpointError: If there is no readable network.
          ValueError: If it is not the one that is meant.
        """
        settings = dataclasses.asdict(self)
        digest = settings.pop("digest")
        segmenter = load_segmenter(**settings)
        # Afterwards, for it may have been replaced meanwhile.
        if read_digest(pretrained.resolve(self.checkpoint)) != digest:
            raise ValueError(
                f"{self.checkpoint}: is another network on {socket.gethostname()}, or "
                "was replaced since the start"
            )
        return segmenter


@dataclasses.dataclass(frozen=True)
class Source:
    """A plane, to be opened by path.

    Attributes:
      job: The file.
      index: Which of its planes.
      options: How to read it.
      segmented: The channels that the network sees, see `hue.in_gray`.
    """

    job: Job
    index: int
    options: Options
    segmented: tuple[int, ...]

    @contextlib.contextmanager
    def open(self) -> Iterator[Plane]:
        """Opens the plane; it can be read until the context ends.

        Raises:
          ImageError: If it cannot be read.
        """
        with open_job(self.job, self.options) as planes:
            yield dataclasses.replace(planes[self.index], segmented=self.segmented)


@dataclasses.dataclass(frozen=True)
class Description:
    """What must be known of a plane before it is divided.

    Attributes:
      info: What outputs need to know.
      segmented: The channels that the network sees, see `hue.in_gray`.
      suffix: Of the names of its results.
      is_own: Whether it is left to this file, see `jobs.is_own`.
      halo: Pixels around a block.
      rim: Those of them where nuclei may be decoded otherwise, see `windows`.
      normalization: Of the network.
    """

    info: PlaneInfo
    segmented: tuple[int, ...]
    suffix: str
    is_own: bool
    halo: int
    rim: int
    normalization: str


@dataclasses.dataclass(frozen=True)
class Work:
    """What all tasks of a plane have in common.

    Attributes:
      source: The plane.
      network: What finds its nuclei.
      info: What outputs need to know.
      blocks: Where its blocks lie.
      contrast: Of the whole plane.
      scratch: Folder for the blocks' results, which all processes share.
    """

    source: Source
    network: Network
    info: PlaneInfo
    blocks: Blocks
    contrast: contrast.Contrast
    scratch: pathlib.Path

    def path(self, block: Block, suffix: str) -> pathlib.Path:
        """Where a result of a block lies."""
        return self.scratch / f"{block[0]:05}_{block[1]:05}{suffix}"


def describe_planes(job: Job, options: Options, network: Network) -> list[Description]:
    """Looks at the planes of a file.

    Raises:
      ImageError: If it cannot be read, or the network needs whole planes.
      CheckpointError: If there is no readable network.
      ValueError: If it is not the one that is meant.
    """
    segmenter = _load(network)
    found = []
    with open_job(job, options) as planes:
        stamp = take_stamp(job.image, planes)
        for plane in map(in_gray, planes):
            segmenter.check_regions(plane)
            scale = options.scale or segmenter.choose_scale(plane.pixel_size)
            segmenter.check_scale(plane, scale)
            found.append(
                Description(
                    info=describe(
                        job,
                        plane,
                        options,
                        targets=segmenter.targets,
                        scale=scale,
                        stamp=stamp,
                    ),
                    segmented=plane.segmented,
                    suffix=plane.suffix,
                    is_own=is_own(job, plane),
                    halo=choose_halo(scale),
                    rim=choose_rim(segmenter.decoding, scale),
                    normalization=segmenter.normalization,
                )
            )
    return found


def find_stamp(job: Job, options: Options) -> str:
    """Takes the stamp of a file, see `jobs.take_stamp`.

    Raises:
      ImageError: If it cannot be read.
    """
    with open_job(job, options) as planes:
        return take_stamp(job.image, planes)


def find_range(source: Source) -> tuple[float, float] | None:
    """Finds which values of a plane are black and white, see `intensity_range`."""
    with source.open() as plane:
        return intensity_range(plane)


def count_values(
    source: Source,
    value_range: tuple[float, float] | None,
    core: tuple[slice, slice],
) -> np.ndarray:
    """Counts the values of a part of a plane: int64 [256]."""
    with source.open() as plane:
        look = contrast.colour_reader(plane, value_range)
        return contrast.count_values(look, *core)


def segment_block(work: Work, block: Block, before: Mapping[Block, int]) -> int:
    """Finds the nuclei that are a block's own, and measures them.

    Args:
      work: Of the plane.
      block: Which.
      before: What this returned for its neighbours of earlier rounds, whose files are
        read.

    Returns:
      How many there are. A block that has been finished is not done again.
    """
    if not work.path(block, ".npy").exists():
        with work.source.open() as plane:
            window = _find_nuclei(work, block, plane, list(before))
        table: dict[str, Any] = Nuclei(window, work.info).table
        with _writing_bytes(work.path(block, ".npz")) as file:
            np.savez_compressed(file, **table)
        with _writing_bytes(work.path(block, ".npy")) as file:
            np.save(file, window.labels)
    return len(load_table(work, block)["id"])


def write_block(
    work: Work, pyramid: pathlib.Path, block: Block, firsts: Mapping[Block, int]
) -> None:
    """Writes a block's core of the label image, and its rows of the table.

    Args:
      work: Of the plane, all of whose blocks are segmented.
      pyramid: The label image, see `labels_zarr.create_pyramid`.
      block: Which.
      firsts: What is added to ids, at least of the block and its neighbours.

    Raises:
      OSError: If it cannot be written, or reads back differently.
    """
    core, blocks = work.blocks.core(block), work.blocks
    load = functools.partial(_load_labels, work)
    labels = assemble(blocks, core, blocks.around(block), load, firsts)
    _write_part(_open_level(pyramid, 0), core, labels)
    table = load_table(work, block)
    table["id"] = table["id"] + firsts[block]
    with writing_text(work.path(block, ".csv")) as file:
        csv.writer(file, lineterminator="\n").writerows(format_rows(table))


def shrink_part(pyramid: pathlib.Path, level: int, part: tuple[slice, slice]) -> None:
    """Writes a part of a level: every second row and column of the one before.

    Args:
      pyramid: The label image, whose level before is written.
      level: From 1.
      part: Rows and columns of the level; both begin at whole chunks.

    Raises:
      OSError: If it cannot be written, or reads back differently.
    """
    larger, array = _open_level(pyramid, level - 1), _open_level(pyramid, level)
    rows, columns = part
    doubled = slice(2 * columns.start, 2 * columns.stop)
    for top in range(rows.start, rows.stop, CHUNK):
        band = slice(top, min(top + CHUNK, rows.stop))
        labels: Any = larger[2 * band.start : 2 * band.stop, doubled]
        _write_part(array, (band, columns), labels[::2, ::2])


def load_table(work: Work, block: Block) -> dict[str, np.ndarray]:
    """Loads the measurements of a block's own nuclei, numbered from 1."""
    with np.load(work.path(block, ".npz")) as columns:
        return dict(columns)


def _load(network: Network) -> Segmenter:
    # The lock, because the threads of a process begin at the same time.
    with _loading:
        return _load_once(network)


@functools.lru_cache(maxsize=1)
def _load_once(network: Network) -> Segmenter:
    return network.load()


def _find_nuclei(work: Work, block: Block, plane: Plane, before: list[Block]) -> Window:
    """Predicts and decodes a block, and keeps what is its own."""
    segmenter = _load(work.network)
    blocks, scale = work.blocks, work.info.scale
    rows, columns = region = blocks.region(block)
    probs = segmenter.predict_region(
        plane, rows, columns, work.contrast, longest=blocks.longest, scale=scale
    )
    labels = segmenter.decode(probs, scale=scale)
    load = functools.partial(_load_labels, work)
    known = assemble(blocks, region, before, load, dict.fromkeys(before, 0))
    return Window(
        top=rows.start,
        left=columns.start,
        labels=claim(blocks, block, labels, known),
        probs=probs,
        pixels=plane.read(rows, columns),
    )


def _load_labels(work: Work, block: Block) -> np.ndarray:
    """Maps a block's own nuclei into memory: only what is looked at is read."""
    return np.load(work.path(block, ".npy"), mmap_mode="r")


def _open_level(pyramid: pathlib.Path, level: int) -> zarr.Array:
    return zarr.open_array(pyramid / str(level), mode="r+")


def _write_part(
    array: zarr.Array, part: tuple[slice, slice], labels: np.ndarray
) -> None:
    array[part] = labels
    if not np.array_equal(np.asarray(array[part]), labels):
        raise OSError(f"{array.store_path}: reads back differently")


@contextlib.contextmanager
def _writing_bytes(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a file that appears whole."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        yield file
