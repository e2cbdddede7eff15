"""TIFF files of any size, with the pixel size inside, read back after writing.

They are OME-TIFF, so that Fiji, QuPath, napari and Python know pixel size and channel
names. Fiji's own reader looks at the resolution tags instead, and opens strips with
deflate, but no tiles and no half-precision floats: small images are in strips. Large
ones are pyramids: each page has its reduced levels in its SubIFDs, where readers that
know of no pyramid do not look.
"""

from __future__ import annotations

import contextlib
import math
import pathlib
import queue
import tempfile
import threading
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tifffile

from nucseg_jax.inference.outputs import pyramid
from nucseg_jax.inference.outputs.rows import RowBlocks
from nucseg_jax.inference.streams import PlaneInfo

TILE = 256
# Longest side of a pyramid's last level: what a viewer shows at once.
OVERVIEW = 1024
# Offsets of a classic TIFF have 32 bits; the rest is room for what is not pixels.
_CLASSIC_BYTES = 2**32 - 2**25


def write_tiff(
    path: pathlib.Path, planes: np.ndarray, info: PlaneInfo, names: Sequence[str]
) -> None:
    """Writes planes [C, H, W] in strips, one page each, and reads them back.

    Raises:
      OSError: If the file cannot be written or reads back differently.
    """
    tifffile.imwrite(
        path,
        planes,
        bigtiff=needs_bigtiff([planes.shape], planes.dtype),
        ome=True,
        metadata=_metadata(info, names),
        **_page_options(info),
    )
    if not np.array_equal(tifffile.imread(path).reshape(planes.shape), planes):
        raise OSError("reads back differently from what was written")


class TiffStream:
    """Writes a tiled pyramid of one page a channel while its rows come in.

    A thread encodes and writes tiles. TIFF keeps pages one after another: the first
    channel's is written as it comes, while the rows of other channels and of all
    reduced levels wait in files that have no name.
    """

    def __init__(
        self,
        path: pathlib.Path,
        shape: tuple[int, int, int],
        dtype: type[np.generic],
        info: PlaneInfo,
        names: Sequence[str],
    ):
        """Starts a file of planes [C, H, W], with a name for each channel."""
        self._path, self._dtype = path, np.dtype(dtype)
        self._info, self._names = info, names
        channels, height, width = shape
        self._shapes = [
            (channels, *level)
            for level in pyramid.level_shapes(height, width, OVERVIEW)
        ]
        self._blocks = RowBlocks(TILE)
        self._next_row = 0
        self._open_files = contextlib.ExitStack()
        self._waiting = self._make_waiting_pages()
        self._queue: queue.Queue[np.ndarray | None] = queue.Queue(maxsize=1)
        self._checksums: list[int] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def add(self, rows: np.ndarray) -> None:
        """Takes the next rows of all channels, [C, h, W].

        Raises:
          OSError: If these or earlier rows could not be written.
        """
        for page in self._waiting:
            page.add(rows, self._next_row)
        self._next_row += rows.shape[1]
        for block in self._blocks.push(rows[0]):
            # A copy, as in `RowBlocks`: the thread may take its time.
            self._put(block.astype(self._dtype))

    def finish(self) -> None:
        """Writes what is left and compares the file with what went in, tile by tile.

        Raises:
          OSError: If the file could not be written or reads back differently.
        """
        for block in self._blocks.rest():
            self._put(block)
        for page in self._waiting:
            for block in page.blocks():
                self._put(block)
        self._thread.join()
        self._raise_error()
        self._open_files.close()
        if _read_checksums(self._path, self._shapes, self._dtype) != self._checksums:
            raise OSError("reads back differently from what was written")

    def abort(self) -> None:
        """Stops the thread; the file stays behind, unfinished."""
        while self._thread.is_alive():
            # Whatever still waits to be written is not wanted any more.
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._queue.put(None)
            self._thread.join(0.01)
        self._open_files.close()

    def _make_waiting_pages(self) -> list[_WaitingPage]:
        """Makes all pages but the first, in the order in which they are written."""
        order = [
            (level, channel, width)
            for level, (channels, _, width) in enumerate(self._shapes)
            for channel in range(channels)
        ]
        return [
            _WaitingPage(
                self._open_files.enter_context(
                    tempfile.TemporaryFile(dir=self._path.parent)
                ),
                level=level,
                channel=channel,
                width=width,
                dtype=self._dtype,
            )
            for level, channel, width in order[1:]
        ]

    def _put(self, block: np.ndarray) -> None:
        while True:
            self._raise_error()
            try:
                return self._queue.put(block, timeout=0.1)
            except queue.Full:
                continue

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _write(self) -> None:
        try:
            with tifffile.TiffWriter(
                self._path,
                bigtiff=needs_bigtiff(self._shapes, self._dtype),
                ome=True,
            ) as writer:
                self._write_levels(writer)
        # Raised where the rows come from.
        except BaseException as error:
            self._error = error

    def _write_levels(self, writer: tifffile.TiffWriter) -> None:
        # What is written after pages with SubIFDs becomes these.
        options: dict[str, Any] = {
            "subifds": len(self._shapes) - 1,
            "metadata": _metadata(self._info, self._names),
        }
        for level, shape in enumerate(self._shapes):
            writer.write(
                self._tiles(),
                shape=shape,
                dtype=self._dtype,
                tile=(TILE, TILE),
                **options,
                **_page_options(self._info, level),
            )
            options = {"subfiletype": 1}

    def _tiles(self) -> Iterator[np.ndarray]:
        while (block := self._queue.get()) is not None:
            for left in range(0, block.shape[1], TILE):
                tile = np.zeros((TILE, TILE), self._dtype)
                part = block[:, left : left + TILE]
                tile[: part.shape[0], : part.shape[1]] = part
                self._checksums.append(zlib.crc32(tile.data))
                yield tile


class _WaitingPage:
    """A page that comes after others in the file: its rows wait in a file."""

    def __init__(
        self, file: Any, *, level: int, channel: int, width: int, dtype: np.dtype
    ):
        self._file, self._level, self._channel = file, level, channel
        self._width, self._dtype = width, dtype

    def add(self, rows: np.ndarray, top: int) -> None:
        """Takes its part of the next rows of the image, [C, h, W]."""
        sampled = pyramid.sample(rows[self._channel], top, self._level)
        self._file.write(sampled.astype(self._dtype).tobytes())

    def blocks(self) -> Iterator[np.ndarray]:
        """Reads its rows back, as many at a time as a tile is high: [h, w]."""
        self._file.seek(0)
        count = TILE * self._width
        while len(values := np.fromfile(self._file, self._dtype, count)):
            yield values.reshape(-1, self._width)


def needs_bigtiff(shapes: Sequence[Sequence[int]], dtype: np.dtype) -> bool:
    """Tells if 32-bit offsets might not do: sizes are those without compression.

    Args:
      shapes: Of all levels, each [C, H, W].
      dtype: Of all levels.
    """
    return sum(map(math.prod, shapes)) * dtype.itemsize > _CLASSIC_BYTES


def _page_options(info: PlaneInfo, level: int = 0) -> dict[str, Any]:
    """What every page gets: one sample, deflate, the size of its pixels."""
    options: dict[str, Any] = {
        "photometric": "minisblack",
        "compression": "zlib",
        # One by one: tifffile gathers 256 MiB of tiles for its threads.
        "maxworkers": 1,
    }
    if info.pixel_size:
        # Pixels a centimetre, which Fiji turns to micrometres.
        options["resolution"] = (1e4 / info.pixel_size / 2**level,) * 2
        options["resolutionunit"] = "CENTIMETER"
    return options


def _metadata(info: PlaneInfo, names: Sequence[str]) -> dict[str, Any]:
    """What the OME-XML says of the whole image."""
    metadata: dict[str, Any] = {"axes": "CYX", "Channel": {"Name": list(names)}}
    if info.pixel_size:
        for axis in "XY":
            metadata[f"PhysicalSize{axis}"] = info.pixel_size
            metadata[f"PhysicalSize{axis}Unit"] = "µm"
    return metadata


def _read_checksums(
    path: pathlib.Path, shapes: Sequence[tuple[int, ...]], dtype: np.dtype
) -> list[int]:
    """Checksums of all tiles in order; [] if levels or type are others.

    Args:
      path: The file.
      shapes: Of all levels, each [C, H, W].
      dtype: Of all levels.
    """
    with tifffile.TiffFile(path) as tiff:
        pages = [
            page
            for level in tiff.series[0].levels
            for page in level.pages
            if page is not None
        ]
        found = [(page.shape, page.dtype) for page in pages]
        if found != [((h, w), dtype) for c, h, w in shapes for _ in range(c)]:
            return []
        return [
            0 if tile is None else zlib.crc32(np.ascontiguousarray(tile).data)
            for page in pages
            for tile, *_ in page.segments(maxworkers=1)
        ]
