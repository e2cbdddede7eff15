"""Reads regions of Zarr arrays, whatever the order of their axes, by blocks of chunks.

Chunks that a folder lacks are empty by Zarr's rules, so a copy from which chunks were
lost looks darker, not damaged; an array without any chunk is refused. A chunk deeper
than a picture is decoded once for each picture.
"""

from __future__ import annotations

import functools
import itertools
import math
import pathlib
import re
import struct

import numpy as np
import zarr

from nucseg_jax.data import errors
from nucseg_jax.data.formats import regions

_SMALLEST_BLOCK_SIDE = 1024  # Smaller chunks are read several at once.
_BLOSC_HEADER_BYTES = 16  # The last four of which tell the length with the header.


class ZarrBlocks:
    """Pictures of an array, read by region. Threads may do so.

    Args:
      path: The folder in which the array is.
      array: Of any order of axes.
      places: Letter of an axis -> its place in the array, for all that are read; others
        have length one.
      cache: For decoded blocks, one for all images of the folder.
      max_pixels: Limit on the pixels of a chunk.

    Attributes:
      num_channels: Values of a pixel.
      dtype: Of a value.

    Raises:
      ImageError: If chunks are too large, or there are none.
    """

    def __init__(
        self,
        path: pathlib.Path,
        array: zarr.Array,
        places: dict[str, int],
        cache: regions.BlockCache,
        *,
        max_pixels: int,
    ) -> None:
        self.num_channels = array.shape[places["C"]] if "C" in places else 1
        self.dtype = array.dtype.newbyteorder("=")
        self._path = path
        self._array = array
        self._places = places
        self._folder = path / array.path
        self._cache = cache
        # Sharded chunks have their lengths written elsewhere.
        self._is_blosc = array.shards is None and any(
            "blosc" in type(codec).__name__.lower() for codec in array.compressors
        )
        self._check(max_pixels)
        self._block_shape = (
            _block_side(array.chunks[places["Y"]]),
            _block_side(array.chunks[places["X"]]),
        )
        across = -(-array.shape[places["X"]] // self._block_shape[1])
        values = across * math.prod(self._block_shape) * self.num_channels
        cache.make_room(values * self.dtype.itemsize)

    def read(self, index: tuple[int, ...], rows: slice, columns: slice) -> np.ndarray:
        """Reads a region of a picture, [h, w, C].

        Raises:
          ImageError: If chunks are damaged. Decoders raise other errors, too.
        """
        return regions.read_blocks(
            functools.partial(self._load, index),
            rows,
            columns,
            block_shape=self._block_shape,
            samples=self.num_channels,
            dtype=self.dtype,
        )

    def _check(self, max_pixels: int) -> None:
        chunk = self._array.chunks
        channels = chunk[self._places["C"]] if "C" in self._places else 1
        wide = -(-channels // 4)  # More than RGBA weighs more than a pixel.
        errors.check_size(self._path, math.prod(chunk) // channels * wide, max_pixels)
        if not any(map(self._is_chunk, self._folder.rglob("*"))):
            first = self._array.metadata.encode_chunk_key((0,) * self._array.ndim)
            raise errors.ImageError(
                f"{self._path}: holds no pixels, it lacks all chunks, or they have "
                f"other names than its metadata say, such as {first}"
            )

    def _is_chunk(self, file: pathlib.Path) -> bool:
        """Tells if a file has the name of a chunk: others are read by nobody."""
        key = file.relative_to(self._folder).as_posix()
        place = tuple(map(int, re.findall(r"\d+", key)))
        is_place = len(place) == self._array.ndim
        return is_place and self._array.metadata.encode_chunk_key(place) == key

    def _load(self, index: tuple[int, ...], i: int, j: int) -> np.ndarray:
        place = index, i, j
        return self._cache.get((id(self), *place), lambda: self._decode(*place))

    def _decode(self, index: tuple[int, ...], i: int, j: int) -> np.ndarray:
        """Decodes the chunks of a block, [h, w, C]."""
        selection = self._select(index, i, j)
        if self._is_blosc:
            self._check_blosc(selection)
        inner = sorted(
            (self._places[axis], axis) for axis in self._places if axis in "YXC"
        )
        axes = [axis for _, axis in inner]
        counted = [n for n in range(self._array.ndim) if n not in dict(inner)]
        block = np.asarray(self._array[selection]).squeeze(axis=tuple(counted))
        block = block.transpose([axes.index(axis) for axis in "YXC" if axis in axes])
        return block.reshape(*block.shape[:2], self.num_channels)

    def _select(self, index: tuple[int, ...], i: int, j: int) -> tuple[slice, ...]:
        """The part of the array that a block is, all its channels."""
        selection = [slice(0, 1)] * self._array.ndim
        counted = [axis for axis in self._places if axis not in "YXC"]
        for axis, number in zip(counted, index, strict=True):
            selection[self._places[axis]] = slice(number, number + 1)
        for axis, number, side in zip("YX", (i, j), self._block_shape, strict=True):
            length = self._array.shape[self._places[axis]]
            part = slice(number * side, min((number + 1) * side, length))
            selection[self._places[axis]] = part
        if "C" in self._places:
            selection[self._places["C"]] = slice(0, self.num_channels)
        return tuple(selection)

    def _check_blosc(self, selection: tuple[slice, ...]) -> None:
        """Refuses chunks that are shorter than they say.

        Blosc's decoder does not ask how long its input is, and reads on behind it.
        """
        touched = [
            range(part.start // side, -(-part.stop // side))
            for part, side in zip(selection, self._array.chunks, strict=True)
        ]
        for place in itertools.product(*touched):
            file = self._folder / self._array.metadata.encode_chunk_key(place)
            if not file.exists():
                continue
            with file.open("rb") as chunk:
                header = chunk.read(_BLOSC_HEADER_BYTES)
            size = file.stat().st_size
            if len(header) < _BLOSC_HEADER_BYTES or _blosc_length(header) != size:
                raise errors.ImageError(
                    f"{self._path}: chunk {file.name} is damaged, it has {size} bytes"
                )


def _blosc_length(header: bytes) -> int:
    return struct.unpack_from("<I", header, _BLOSC_HEADER_BYTES - 4)[0]


def _block_side(chunk: int) -> int:
    """A multiple of the chunk's side that is not too small."""
    return chunk * -(-_SMALLEST_BLOCK_SIDE // chunk)
