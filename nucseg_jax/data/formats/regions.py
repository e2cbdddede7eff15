"""Regions of a picture, put together from blocks and turned upright.

Regions are pairs of slices, rows and columns, with a start and a stop in the picture.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Hashable

import numpy as np

from nucseg_jax.data.formats.stacks import ReadPicture

LoadBlock = Callable[[int, int], np.ndarray]  # (block row, block column) -> [h, w, ...]

_CACHE_BYTES = 128 << 20
_MOST_CACHE_BYTES = 512 << 20


class BlockCache:
    """Keeps the decoded blocks of a file that were used last. Threads may share it.

    Bands that are read one after the other end within a row of blocks, and the next
    band needs that row again; windows that overlap need two rows. So two rows of blocks
    are kept if they fit in 512 MiB, and 128 MiB of smaller ones.
    """

    def __init__(self) -> None:
        self._blocks: collections.OrderedDict[Hashable, np.ndarray] = (
            collections.OrderedDict()
        )
        self._num_bytes = 0
        self._most_bytes = _CACHE_BYTES
        self._is_closed = False
        self._lock = threading.Lock()

    def make_room(self, row_bytes: int) -> None:
        """Makes room for rows of blocks.

        Args:
          row_bytes: Of the decoded blocks that cover a picture's width.
        """
        wanted = min(2 * row_bytes, _MOST_CACHE_BYTES)
        self._most_bytes = max(self._most_bytes, wanted)

    def get(self, key: Hashable, load: Callable[[], np.ndarray]) -> np.ndarray:
        """Gives a block, loaded if it is not here. It must not be changed.

        Raises:
          ValueError: If the file was closed.
        """
        with self._lock:
            if self._is_closed:
                raise ValueError("it was closed")
            if key in self._blocks:
                self._blocks.move_to_end(key)
                return self._blocks[key]
        block = load()
        with self._lock:
            if key not in self._blocks:  # Another thread may have been faster.
                self._blocks[key] = block
                self._num_bytes += block.nbytes
            while self._num_bytes > self._most_bytes and len(self._blocks) > 1:
                self._num_bytes -= self._blocks.popitem(last=False)[1].nbytes
        return block

    def close(self) -> None:
        """Forgets all blocks; reading is an error from now on."""
        with self._lock:
            self._is_closed = True
            self._blocks.clear()


def read_blocks(
    load: LoadBlock,
    rows: slice,
    columns: slice,
    *,
    block_shape: tuple[int, int],
    samples: int,
    dtype: np.dtype,
) -> np.ndarray:
    """Reads a region from the blocks that it touches.

    Args:
      load: (block row, block column) -> [h, w, samples]; the array may reach beyond
        the picture.
      rows: Of the region.
      columns: Of the region.
      block_shape: Height and width of a block.
      samples: Values of a pixel.
      dtype: Of the values.

    Returns:
      [rows, columns, samples].
    """
    height, width = block_shape
    shape = (rows.stop - rows.start, columns.stop - columns.start, samples)
    region = np.empty(shape, dtype)
    for i in range(rows.start // height, -(-rows.stop // height)):
        target_rows, source_rows = _overlap(rows, i * height, height)
        for j in range(columns.start // width, -(-columns.stop // width)):
            target_columns, source_columns = _overlap(columns, j * width, width)
            block = load(i, j)
            region[target_rows, target_columns] = block[source_rows, source_columns]
    return region


def _overlap(region: slice, start: int, length: int) -> tuple[slice, slice]:
    """Where the region and a block meet: within the region, and within the block."""
    first, last = max(region.start, start), min(region.stop, start + length)
    return (
        slice(first - region.start, last - region.start),
        slice(first - start, last - start),
    )


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns pixels as an EXIF or TIFF orientation asks; unknown ones change nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def turned_shape(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Height and width of the picture once it is turned."""
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def make_upright(
    read: ReadPicture, shape: tuple[int, int], orientation: int
) -> ReadPicture:
    """Makes the function that reads pictures turned as their orientation asks.

    Args:
      read: Reads them as they are stored.
      shape: Height and width once they are turned.
      orientation: 1 to 8.
    """

    def read_upright(index: tuple[int, ...], rows: slice, columns: slice) -> np.ndarray:
        if orientation in (3, 4, 7, 8):
            rows = slice(shape[0] - rows.stop, shape[0] - rows.start)
        if orientation in (2, 3, 6, 7):
            columns = slice(shape[1] - columns.stop, shape[1] - columns.start)
        if orientation in (5, 6, 7, 8):
            rows, columns = columns, rows
        return turn(read(index, rows, columns), orientation)

    return read_upright
