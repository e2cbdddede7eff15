"""Opens OME-Zarr folders: image metadata 0.4 (Zarr 2) and 0.5 (Zarr 3), level 0.

Chunks that a folder lacks are empty by Zarr's rules, so a copy from which chunks were
lost looks darker, not damaged; a folder without any chunk is refused. A chunk deeper
than a picture is decoded once for each picture.

Metadata: https://ngff.openmicroscopy.org/0.4/ and https://ngff.openmicroscopy.org/0.5/
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import zarr

from nucseg_jax.data import errors
from nucseg_jax.data.formats import regions
from nucseg_jax.data.formats.stacks import ReadPicture, Stack, settle_axes
from nucseg_jax.data.formats.units import combine_sides, micrometres

_LETTERS = {"time": "T", "channel": "C"}
_METADATA_FILES = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
_SMALLEST_BLOCK_SIDE = 1024  # Smaller chunks are read several at once.


@contextlib.contextmanager
def open_ome_zarr(
    path: pathlib.Path, *, axes: str | None, max_pixels: int
) -> Iterator[list[Stack]]:
    """Reads a folder's metadata and gives its images as stacks.

    A folder without image metadata is read if it is an array.

    Args:
      path: The folder.
      axes: What the user says of the axes.
      max_pixels: Limit on the pixels of a chunk.

    Raises:
      ImageError: If there is no image, axes are unknown, or chunks too large.
    """
    root = zarr.open(path, mode="r")
    with contextlib.ExitStack() as closing:
        if isinstance(root, zarr.Array):
            unknown = "Q" * (root.ndim - 2) + "YX"
            image = _Image(path, root, unknown, None, ())
            yield [_stack_of(image, closing, axes, max_pixels)]
            return
        groups = _image_groups(path, root)
        stacks = []
        for number, group in enumerate(groups):
            image = _read_metadata(path, group)
            stack = _stack_of(image, closing, axes, max_pixels)
            name = f"s={number}" if len(groups) > 1 else ""
            stacks.append(dataclasses.replace(stack, name=name))
        yield stacks


@dataclasses.dataclass(frozen=True)
class _Image:
    """An array with what its metadata say.

    Attributes:
      path: The folder.
      array: Of full size.
      axes: A letter an axis.
      pixel_size: Micrometres, None = unknown.
      channels: Names, may be empty.
    """

    path: pathlib.Path
    array: zarr.Array
    axes: str
    pixel_size: float | None
    channels: tuple[str, ...]


def _image_groups(path: pathlib.Path, root: zarr.Group) -> list[zarr.Group]:
    """The images in a folder: itself, or the numbered ones that converters write."""
    metadata = _ome(root)
    if "multiscales" in metadata:
        return [root]
    if "plate" in metadata or "well" in metadata:
        raise errors.ImageError(
            f"{path}: holds a plate of many images; name one of them, such as "
            f"{path / 'A' / '1' / '0'}"
        )
    groups = []
    while isinstance(group := root.get(str(len(groups))), zarr.Group):
        groups.append(group)
    if not groups or any("multiscales" not in _ome(group) for group in groups):
        raise errors.ImageError(f"{path}: holds no image in the OME-Zarr format")
    return groups


def _ome(group: zarr.Group) -> dict[str, Any]:
    """The image metadata, which version 0.5 has put into a field of their own."""
    attributes: dict[str, Any] = dict(group.attrs)
    return attributes.get("ome", attributes)


def _read_metadata(path: pathlib.Path, group: zarr.Group) -> _Image:
    metadata = _ome(group)
    multiscale = metadata["multiscales"][0]
    dataset = multiscale["datasets"][0]
    array = group[dataset["path"]]
    assert isinstance(array, zarr.Array)
    # Version 0.3 has names alone.
    axes = [a if isinstance(a, dict) else {"name": a} for a in multiscale["axes"]]
    return _Image(
        path=path,
        array=array,
        axes="".join(_letter(axis) for axis in axes),
        pixel_size=_pixel_size(axes, multiscale, dataset),
        channels=_channel_names(metadata),
    )


def _letter(axis: dict[str, Any]) -> str:
    name = str(axis.get("name", "")).upper()
    fallback = name if len(name) == 1 else "Q"
    return _LETTERS.get(axis.get("type", ""), fallback)


def _pixel_size(
    axes: list[dict[str, Any]], multiscale: dict[str, Any], dataset: dict[str, Any]
) -> float | None:
    """Side of a pixel; both the level and the whole pyramid may be scaled."""
    sizes = []
    for name in "yx":
        place = [axis["name"] for axis in axes].index(name)
        scale = math.prod(
            transformation["scale"][place]
            for level in (multiscale, dataset)
            for transformation in level.get("coordinateTransformations", ())
            if transformation["type"] == "scale"
        )
        sizes.append(micrometres(scale, axes[place].get("unit", "")))
    return combine_sides(sizes)


def _channel_names(metadata: dict[str, Any]) -> tuple[str, ...]:
    channels = metadata.get("omero", {}).get("channels", ())
    return tuple(str(c.get("label") or n) for n, c in enumerate(channels))


def _stack_of(
    image: _Image,
    closing: contextlib.ExitStack,
    answer: str | None,
    max_pixels: int,
) -> Stack:
    shape = image.array.shape
    kept = [
        place
        for place, (axis, length) in enumerate(zip(image.axes, shape, strict=True))
        if length != 1 or axis in "YX"
    ]
    own = "".join(image.axes[place] for place in kept)
    lengths = tuple(shape[place] for place in kept)
    axes = settle_axes(image.path, own, lengths, answer)
    places = dict(zip(axes, kept, strict=True))
    _check_chunks(image, places, max_pixels)
    num_channels = shape[places["C"]] if "C" in places else 1
    has_names = len(image.channels) == num_channels
    names = image.channels if has_names else tuple(map(str, range(num_channels)))
    return Stack(
        axes=axes,
        lengths=lengths,
        height=shape[places["Y"]],
        width=shape[places["X"]],
        channels=names,
        is_colour=False,  # The format has no colours: red, green and blue are channels.
        dtype=image.array.dtype.newbyteorder("="),
        pixel_size=image.pixel_size,
        read=_make_read(image.array, places, num_channels, closing),
    )


def _check_chunks(image: _Image, places: dict[str, int], max_pixels: int) -> None:
    chunk = image.array.chunks
    channels = chunk[places["C"]] if "C" in places else 1
    wide = -(-channels // 4)  # More than RGBA weighs more than a pixel.
    errors.check_size(image.path, math.prod(chunk) // channels * wide, max_pixels)
    folder = image.path / image.array.path
    if all(name in _METADATA_FILES for name in os.listdir(folder)):
        raise errors.ImageError(f"{image.path}: holds no pixels, it lacks all chunks")


def _make_read(
    array: zarr.Array,
    places: dict[str, int],
    num_channels: int,
    closing: contextlib.ExitStack,
) -> ReadPicture:
    """Makes the function that reads a picture, with a cache of decoded blocks.

    Args:
      array: Of any order of axes.
      places: Letter of an axis -> its place in the array.
      num_channels: Of a pixel.
      closing: Empties the cache.
    """
    dtype = array.dtype.newbyteorder("=")
    block_height, block_width = (
        _block_side(array.chunks[places[axis]]) for axis in "YX"
    )
    block_shape = block_height, block_width
    inner = [axis for axis in sorted(places, key=places.__getitem__) if axis in "YXC"]
    order = [inner.index(axis) for axis in "YXC" if axis in inner]
    counted = [places[axis] for axis in places if axis not in "YXC"]

    def load(index: tuple[int, ...], i: int, j: int) -> np.ndarray:
        selection: list[int | slice] = [0] * array.ndim
        for place, number in zip(counted, index, strict=True):
            selection[place] = number
        for axis, number, side in zip("YX", (i, j), block_shape, strict=True):
            selection[places[axis]] = slice(number * side, (number + 1) * side)
        if "C" in places:
            selection[places["C"]] = slice(None)
        block = np.asarray(array[tuple(selection)]).transpose(order)
        return block.reshape(*block.shape[:2], num_channels)

    cached = regions.cached(
        load,
        block_bytes=math.prod(block_shape) * num_channels * dtype.itemsize,
        blocks_a_row=-(-array.shape[places["X"]] // block_shape[1]),
    )
    closing.callback(cached.cache_clear)

    def read(index: tuple[int, ...], rows: slice, columns: slice) -> np.ndarray:
        return regions.read_blocks(
            lambda i, j: cached(index, i, j),
            rows,
            columns,
            block_shape=block_shape,
            samples=num_channels,
            dtype=dtype,
        )

    return read


def _block_side(chunk: int) -> int:
    """A multiple of the chunk's side that is not too small."""
    return chunk * -(-_SMALLEST_BLOCK_SIDE // chunk)
