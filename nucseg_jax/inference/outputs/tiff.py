"""TIFF files of any size, with the pixel size inside, read back after writing.

They are OME-TIFF, so that Fiji, QuPath, napari and Python know pixel size and channel
names. Fiji's own reader looks at the resolution tags instead, and opens strips with
deflate, but no tiles and no half-precision floats: small images are in strips.
"""

from __future__ import annotations

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

from nucseg_jax.inference.outputs.rows import RowBlocks
from nucseg_jax.inference.streams import PlaneInfo

TILE = 256
# Offsets of a classic TIFF have 32 bits; the rest is room for what is not pixels.
_CLASSIC_BYTES = 2**32 - 2**25


def write_tiff(
    path: pathlib.Path, planes: np.ndarray, info: PlaneInfo, names: Sequence[str]
) -> None:
    """Writes planes [C, H, W] in strips, one page each, and reads them back.

    Raises:
      OSError: If the file cannot be written or reads back differently.
    """
    tifffile.imwrite(path, planes, **_options(planes.shape, planes.dtype, info, names))
    if not np.array_equal(tifffile.imread(path).reshape(planes.shape), planes):
        raise OSError("reads back differently from what was written")


class TiffStream:
    """Writes a tiled TIFF of one page a channel while its rows come in.

    A thread encodes and writes the first channel's tiles. TIFF keeps pages one after
    another, so the rows of other channels wait in files that have no name.
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
        self._path, self._shape, self._dtype = path, shape, np.dtype(dtype)
        self._options = _options(shape, self._dtype, info, names)
        self._blocks = RowBlocks(TILE)
        self._waiting = [tempfile.TemporaryFile(dir=path.parent) for _ in names[1:]]
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
        for channel, file in zip(rows[1:], self._waiting, strict=True):
            file.write(channel.astype(self._dtype).tobytes())
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
        for file in self._waiting:
            for block in self._read_back_rows(file):
                self._put(block)
        self._thread.join()
        self._raise_error()
        self._close_waiting()
        if _read_checksums(self._path, self._shape, self._dtype) != self._checksums:
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
        self._close_waiting()

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

    def _close_waiting(self) -> None:
        for file in self._waiting:
            file.close()

    def _read_back_rows(self, file: Any) -> Iterator[np.ndarray]:
        _, height, width = self._shape
        file.seek(0)
        for top in range(0, height, TILE):
            count = min(TILE, height - top) * width
            values = np.fromfile(file, self._dtype, count)
            yield values.reshape(-1, width)

    def _write(self) -> None:
        try:
            tifffile.imwrite(
                self._path,
                self._tiles(),
                shape=self._shape,
                dtype=self._dtype,
                tile=(TILE, TILE),
                **self._options,
            )
        # Raised where the rows come from.
        except BaseException as error:
            self._error = error

    def _tiles(self) -> Iterator[np.ndarray]:
        while (block := self._queue.get()) is not None:
            for left in range(0, block.shape[1], TILE):
                tile = np.zeros((TILE, TILE), self._dtype)
                part = block[:, left : left + TILE]
                tile[: part.shape[0], : part.shape[1]] = part
                self._checksums.append(zlib.crc32(tile.data))
                yield tile


def needs_bigtiff(shape: Sequence[int], dtype: np.dtype) -> bool:
    """Tells if a file would be too large for 32-bit offsets without compression."""
    return math.prod(shape) * dtype.itemsize > _CLASSIC_BYTES


def _options(
    shape: Sequence[int], dtype: np.dtype, info: PlaneInfo, names: Sequence[str]
) -> dict[str, Any]:
    """What every file gets: pages of one sample, deflate, OME-XML, the pixel size."""
    options: dict[str, Any] = {
        "bigtiff": needs_bigtiff(shape, dtype),
        "ome": True,
        "photometric": "minisblack",
        "compression": "zlib",
        # One by one: tifffile gathers 256 MiB of tiles for its threads.
        "maxworkers": 1,
        "metadata": {"axes": "CYX", "Channel": {"Name": list(names)}},
    }
    if info.pixel_size:
        for axis in "XY":
            options["metadata"][f"PhysicalSize{axis}"] = info.pixel_size
            options["metadata"][f"PhysicalSize{axis}Unit"] = "µm"
        # Pixels a centimetre, which Fiji turns to micrometres.
        options["resolution"] = (1e4 / info.pixel_size, 1e4 / info.pixel_size)
        options["resolutionunit"] = "CENTIMETER"
    return options


def _read_checksums(
    path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype
) -> list[int]:
    """Checksums of all tiles in order; [] if the file is of another shape or type."""
    with tifffile.TiffFile(path) as tiff:
        pages = [tiff.pages[index] for index in range(len(tiff.pages))]
        found = [(page.shape, page.dtype) for page in pages]
        if found != [(shape[1:], dtype)] * shape[0]:
            return []
        return [
            0 if tile is None else zlib.crc32(np.ascontiguousarray(tile).data)
            for page in pages
            for tile, *_ in page.segments(maxworkers=1)
        ]
