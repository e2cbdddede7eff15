"""Opens TIFF files: OME, ImageJ, whole slides, plain stacks and single pictures.

Pages are read by region; of a pyramid, the full size. An OME-TIFF of several files is
read whole from any of them. The orientation tag is obeyed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pathlib
import struct
import threading
from collections.abc import Iterator

import tifffile

from nucseg_jax.data.errors import ImageError
from nucseg_jax.data.formats import (
    regions,
    tiff_colours,
    tiff_layout,
    tiff_metadata,
)
from nucseg_jax.data.formats.stacks import ReadPicture, Stack
from nucseg_jax.data.formats.tiff_pages import Pages

# Kinds of files that hold one slide and small pictures of it.
_SLIDES = ("svs", "ndpi", "scn", "bif", "qpi", "philips", "avs", "huron", "trestle")
_BESIDE_SLIDES = ("label image", "macro image")  # Names that Bio-Formats gives them.
_ORIENTATION = 274


@contextlib.contextmanager
def open_tiff(
    path: pathlib.Path, *, axes: str | None, max_pixels: int
) -> Iterator[list[Stack]]:
    """Reads a file's structure and gives its pictures as stacks.

    Args:
      path: The file.
      axes: What the user says of the axes.
      max_pixels: Limit on pixels that have to be decoded at once.

    Raises:
      ImageError: If the file is cut off, axes are unknown, a compressed block is too
        large, or colours or values are of a kind that cannot be read.
    """
    with (
        _open_whole(path) as tiff,
        contextlib.closing(regions.BlockCache()) as cache,
    ):
        if not tiff.is_ndpi:  # Their lists are written in another way.
            _check_page_list(path, tiff)
        numbers = _choose_series(tiff)
        stacks, lock = [], threading.Lock()
        for number in numbers:
            series = tiff.series[number]
            pages = Pages(path, series, cache, lock, max_pixels=max_pixels)
            stack = _stack_of(path, tiff, number, pages, axes, max_pixels=max_pixels)
            name = f"s={number}" if len(numbers) > 1 else ""
            stacks.append(dataclasses.replace(stack, name=name, files=pages.files))
        yield stacks


@contextlib.contextmanager
def _open_whole(path: pathlib.Path) -> Iterator[tifffile.TiffFile]:
    """Opens a file, or the one beside it that says what it is a part of.

    Where that is missing, no TIFF, or does not know the part, the part is a picture of
    its own.
    """
    with contextlib.ExitStack() as opened:
        tiff = opened.enter_context(tifffile.TiffFile(path))
        if master := tiff_metadata.master_name(tiff):
            with contextlib.suppress(OSError, tifffile.TiffFileError):
                beside = path.parent / pathlib.PurePath(master).name
                whole = opened.enter_context(tifffile.TiffFile(beside))
                if path.name in tiff_metadata.part_names(whole):
                    tiff = whole
        yield tiff


def _check_page_list(path: pathlib.Path, tiff: tifffile.TiffFile) -> None:
    """Refuses a file whose list of pages breaks off.

    tifffile would leave out the pages that it cannot find, and so does it with an
    ImageJ stack that is shorter than its header says.
    """
    if not len(tiff.pages):
        raise ImageError(f"{path}: the file is damaged, it holds no page")
    layout, handle = tiff.tiff, tiff.filehandle
    offset, seen = tiff.pages.first.offset, set()
    while offset:
        if offset in seen or offset + layout.tagnosize > handle.size:
            raise ImageError(
                f"{path}: the file is damaged, its pages break off after {len(seen)}"
            )
        seen.add(offset)
        handle.seek(offset)
        (num_tags,) = struct.unpack(layout.tagnoformat, handle.read(layout.tagnosize))
        handle.seek(num_tags * layout.tagsize, os.SEEK_CUR)
        (offset,) = struct.unpack(layout.offsetformat, handle.read(layout.offsetsize))
    if tiff.is_imagej and tiff.series[0].kind in ("generic", "uniform"):
        raise ImageError(
            f"{path}: the file is damaged, it is too short for its ImageJ header"
        )


def _choose_series(tiff: tifffile.TiffFile) -> list[int]:
    """Numbers of the series without thumbnails, masks and pictures of labels."""
    series = list(tiff.series)
    if series[0].kind in _SLIDES:
        sizes = [math.prod(s.keyframe.shape) for s in series]
        return [sizes.index(max(sizes))]
    chosen = [
        number
        for number, s in enumerate(series)
        if not (s.keyframe.is_reduced or s.keyframe.is_mask)
        and s.name not in _BESIDE_SLIDES
    ]
    return chosen or [0]


def _stack_of(
    path: pathlib.Path,
    tiff: tifffile.TiffFile,
    number: int,
    pages: Pages,
    answer: str | None,
    *,
    max_pixels: int,
) -> Stack:
    series = tiff.series[number]
    layout = tiff_layout.find_layout(path, series, answer)
    if layout.has_samples:
        samples = tiff_colours.describe(path, series.keyframe, kind=series.kind)
    else:
        samples = tiff_colours.describe_gray(series.keyframe)
    orientation = series.keyframe.tags.valueof(_ORIENTATION, 1)
    shape = regions.turned_shape(layout.length("Y"), layout.length("X"), orientation)

    def make_read(convert: tiff_colours.Convert) -> ReadPicture:
        read = tiff_layout.make_read(
            path, layout, pages, convert, max_pixels=max_pixels
        )
        return regions.make_upright(read, shape, orientation)

    stored = samples.convert_stored
    names = tiff_metadata.channel_names(tiff, number)
    channels = _name_channels(layout, samples.channels, names)
    # Colours are channels where the user calls them so.
    is_answered = "C" in layout.axes and layout.axes != layout.stored
    return Stack(
        axes=layout.axes,
        lengths=layout.lengths,
        height=shape[0],
        width=shape[1],
        channels=channels,
        is_colour=samples.is_colour and len(channels) == 3 and not is_answered,
        dtype=samples.dtype,
        pixel_size=tiff_metadata.pixel_size(tiff, number),
        read=make_read(samples.convert),
        read_stored=make_read(stored) if stored else None,
    )


def _name_channels(
    layout: tiff_layout.Layout, samples: tuple[str, ...], names: tuple[str, ...]
) -> tuple[str, ...]:
    """Names a pixel's values as the file does, or else by number.

    Args:
      layout: Of the axes.
      samples: What a page calls its values.
      names: What the file calls its channels; may be empty.
    """
    count = layout.num_outer_channels
    total = count * len(samples) if layout.is_by_page else layout.length("CS")
    if len(names) == total:
        return names
    if count == 1 and len(samples) == total:
        return samples
    if len(names) == count and layout.is_by_page:
        return tuple(f"{name} {sample}" for name in names for sample in samples)
    return tuple(str(n) for n in range(total))
