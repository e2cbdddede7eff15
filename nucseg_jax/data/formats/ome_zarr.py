"""Opens OME-Zarr folders: image metadata 0.4 (Zarr 2) and 0.5 (Zarr 3), level 0.

Metadata: https://ngff.openmicroscopy.org/0.4/ and https://ngff.openmicroscopy.org/0.5/
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import zarr

from nucseg_jax.data import errors
from nucseg_jax.data.formats import regions
from nucseg_jax.data.formats.stacks import Stack, settle_axes
from nucseg_jax.data.formats.units import combine_sides, micrometres
from nucseg_jax.data.formats.zarr_blocks import ZarrBlocks

_LETTERS = {"time": "T", "channel": "C"}


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
    images = _find_images(path)
    with contextlib.closing(regions.BlockCache()) as cache:
        stacks = []
        for number, image in enumerate(images):
            stack = _stack_of(image, cache, axes, max_pixels)
            name = f"s={number}" if len(images) > 1 else ""
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


def _find_images(path: pathlib.Path) -> list[_Image]:
    root = zarr.open(path, mode="r")
    if isinstance(root, zarr.Group):
        return [_read_metadata(path, group) for group in _image_groups(path, root)]
    unknown = "Q" * (root.ndim - 2) + "YX"
    return [_Image(path, root, unknown, pixel_size=None, channels=())]


def _image_groups(path: pathlib.Path, root: zarr.Group) -> list[zarr.Group]:
    """The images in a folder: itself, or the numbered ones that converters write."""
    metadata = _ome(root)
    if "multiscales" in metadata:
        return [root]
    for kind, first in (("plate", path / "A" / "1" / "0"), ("well", path / "0")):
        if kind in metadata:
            raise errors.ImageError(
                f"{path}: holds a {kind} of many images; name one of them, such as "
                f"{first}"
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
    letters = [_letter(axis) for axis in axes]
    for letter in "YX":
        place = letters.index(letter)
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
    cache: regions.BlockCache,
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
    blocks = ZarrBlocks(image.path, image.array, places, cache, max_pixels=max_pixels)
    has_names = len(image.channels) == blocks.num_channels
    numbers = tuple(str(n) for n in range(blocks.num_channels))
    return Stack(
        axes=axes,
        lengths=lengths,
        height=shape[places["Y"]],
        width=shape[places["X"]],
        channels=image.channels if has_names else numbers,
        is_colour=False,  # The format has no colours: red, green and blue are channels.
        dtype=blocks.dtype,
        pixel_size=image.pixel_size,
        read=blocks.read,
    )
