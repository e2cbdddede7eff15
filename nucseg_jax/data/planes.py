"""Any image file as planes: single pictures, read by region, with all their channels.

PNG, JPEG, BMP, TIFF of all kinds and OME-Zarr folders. The file's content decides, not
its name. EXIF and TIFF orientation are obeyed; transparency is dropped; palettes and
CMYK become RGB; otherwise values are those of the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from nucseg_jax.data.errors import MAX_PIXELS, ImageError, check_dtype, naming
from nucseg_jax.data.formats.detect import (
    FOREIGN_SUFFIXES,
    SUFFIXES,
    TIFF_SUFFIXES,
    ZARR_SUFFIX,
    is_zarr,
    open_stacks,
)
from nucseg_jax.data.formats.stacks import Stack
from nucseg_jax.data.formats.units import COARSEST, FINEST

_EVERYTHING = slice(None)
_MOST_NAMES = 20  # Of channels in a message.
_MOST_COLOURS = 4  # Red, green, blue and transparency; a picture may be as narrow.


@dataclasses.dataclass(frozen=True)
class Plane:
    """One picture of a file, whose pixels are read when they are asked for.

    Attributes:
      path: The file.
      name: The file's name and which of its pictures this is, counted from zero:
        "stack.tif t=2 z=1".
      suffix: Tells results of a file's pictures apart: "", "_t002_z001".
      shape: Height, width and number of channels.
      dtype: Of the values.
      channels: Names, as many as there are channels: those of the file; "red", "green"
        and "blue"; or "0", "1" and so on.
      segmented: Which channels the network sees: one as gray, or three as red, green
        and blue.
      may_be_one_hue: Whether these are red, green and blue for which nobody asked, and
        of which `hue.in_gray` has not told yet whether they are one hue on black.
      pixel_size: Micrometres a pixel; None = unknown.
      files: That hold the pixels, links resolved, if they are several: an OME-TIFF may
        be written in parts, each of which opens as the whole.
    """

    path: pathlib.Path
    name: str
    suffix: str
    shape: tuple[int, int, int]
    dtype: np.dtype
    channels: tuple[str, ...]
    segmented: tuple[int, ...]
    may_be_one_hue: bool
    pixel_size: float | None
    files: tuple[pathlib.Path, ...]
    _read: Callable[[slice, slice], np.ndarray] = dataclasses.field(repr=False)

    def read(
        self, rows: slice = _EVERYTHING, columns: slice = _EVERYTHING
    ) -> np.ndarray:
        """Reads a region; threads may do so at the same time.

        From TIFF and OME-Zarr, what the region does not touch is not decoded. Bands of
        whole rows, read from top to bottom, are the cheapest way through a large plane:
        no part is decoded twice.

        Args:
          rows: Slice with step 1.
          columns: Slice with step 1.

        Returns:
          [h, w, C] of the plane's dtype, contiguous; of an array maybe a view of it.

        Raises:
          ImageError: If the region has no pixels, the file is damaged, or it was
            closed.
        """
        region = _region(rows, self.shape[0]), _region(columns, self.shape[1])
        if any(part.stop <= part.start for part in region):
            raise ImageError(f"{self.name}: has no pixels at {rows}, {columns}")
        with naming(self.path.parent / self.name):
            return np.ascontiguousarray(self._read(*region))


def _region(part: slice, length: int) -> slice:
    start, stop, step = part.indices(length)
    if step != 1:
        raise ImageError(f"regions are read with step 1, not {step}")
    return slice(start, stop)


@contextlib.contextmanager
def open_planes(
    path: str | pathlib.Path,
    *,
    channel: str | None = None,
    axes: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[list[Plane]]:
    """Opens an image file and gives its pictures, in the file's order.

    Args:
      path: PNG, JPEG, BMP or TIFF file, or OME-Zarr folder.
      channel: What to segment: a number from zero, a name, or three of them with
        commas between, as red, green and blue. None: gray, or the colours. Files with
        one channel that has no name are not concerned.
      axes: One letter for each axis of a stack that is longer than one, such as TYX,
        ZYX, CYX; needed where the file does not say it. Files with another number of
        axes are not concerned.
      max_pixels: Refuse what has to be decoded at once and is larger: whole files of
        PNG, JPEG and BMP, compressed strips and tiles of TIFF, chunks of OME-Zarr.

    Yields:
      One plane a picture; a stack has one for each time, depth or page. They can be
      read until the context ends.

    Raises:
      ImageError: If the file cannot be read, or a question is open: which channel, or
        what the axes are.
    """
    path = pathlib.Path(path)
    with contextlib.ExitStack() as closing:
        with naming(path):
            stacks = closing.enter_context(
                open_stacks(path, axes=axes, max_pixels=max_pixels)
            )
            planes = [p for stack in stacks for p in _planes_of(path, stack, channel)]
        yield planes


def plane_of_array(
    image: np.ndarray,
    *,
    channel: int | None = None,
    pixel_size: float | None = None,
) -> Plane:
    """Makes a plane of an array.

    Args:
      image: [H, W] or [H, W, C] of any real dtype.
      channel: The one to segment; needed unless there is one, or three.
      pixel_size: Micrometres a pixel; None = unknown.

    Raises:
      ImageError: If shape or dtype is another, or the channel does not exist.
      ValueError: If the pixel size is out of range, see `check_pixel_size`.
    """
    check_dtype("the image", image.dtype)
    check_pixel_size(pixel_size)
    pixels = image[..., None] if image.ndim == 2 else image
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise ImageError(f"the image: is {image.shape}; expected [H, W] or [H, W, C]")
    num_channels = pixels.shape[-1]
    if num_channels > max(min(pixels.shape[:2]), _MOST_COLOURS):
        raise ImageError(
            f"the image: is {image.shape}; expected [H, W] or [H, W, C], so bring the "
            "channels to the end: np.moveaxis(image, 0, -1)"
        )
    if channel is None and num_channels not in (1, 3):
        three = ", or give red, green and blue without transparency (image[..., :3])"
        raise ImageError(
            f"the image: has {num_channels} channels; say which one to look at, such "
            f"as channel=0{three if num_channels > 3 else ''}"
        )
    if channel is None:
        segmented = tuple(range(num_channels))
    elif not isinstance(channel, bool | np.bool_) and channel in range(num_channels):
        segmented = (int(channel),)
    else:
        raise ImageError(
            f"the image: has no channel {channel!r}; it has {num_channels}"
        )
    return Plane(
        path=pathlib.Path("image"),
        name="the image",
        suffix="",
        shape=pixels.shape,
        dtype=pixels.dtype,
        channels=tuple(map(str, range(num_channels))),
        segmented=segmented,
        may_be_one_hue=len(segmented) == 3,
        pixel_size=pixel_size,
        files=(),
        _read=lambda rows, columns: pixels[rows, columns],
    )


def check_pixel_size(pixel_size: float | None) -> None:
    """Refuses sizes by which no length could be told; None is unknown, and may be.

    Raises:
      ValueError: If it is finer than atoms, or coarser than any picture of cells.
    """
    if pixel_size is not None and not FINEST < pixel_size < COARSEST:
        raise ValueError(
            f"pixel_size is {pixel_size}; it must be above {FINEST:.5f} and below "
            f"{COARSEST:,.0f} µm, or None"
        )


def can_open(path: pathlib.PurePath) -> bool:
    """Tells by its name whether a file, or a folder, is one to be opened."""
    return _is_called(path, (*SUFFIXES, *TIFF_SUFFIXES, ZARR_SUFFIX))


def is_image_folder(path: pathlib.Path) -> bool:
    """Tells whether a folder is one image: an OME-Zarr, or one of several in it."""
    place = path.absolute()
    is_inside = any(folder.suffix.lower() == ZARR_SUFFIX for folder in place.parents)
    is_image = is_called_zarr(place) or (is_inside and is_zarr(place))
    return is_image and place.is_dir()


def is_called_zarr(path: pathlib.PurePath) -> bool:
    """Tells by its name whether a folder is an OME-Zarr."""
    return _is_called(path, (ZARR_SUFFIX,))


def is_foreign(path: pathlib.PurePath) -> bool:
    """Tells by its name whether a file is an image of a kind that cannot be opened."""
    return _is_called(path, FOREIGN_SUFFIXES)


def _is_called(path: pathlib.PurePath, suffixes: tuple[str, ...]) -> bool:
    return path.suffix.lower() in suffixes and not path.name.startswith(".")


def _planes_of(
    path: pathlib.Path, stack: Stack, channel: str | None
) -> Iterator[Plane]:
    segmented = _choose_channels(path, stack, channel)
    for index in stack.indices():
        counts = zip(stack.counted.lower(), index, strict=True)
        labels = [stack.name, *(f"{axis}={number}" for axis, number in counts)]
        labels = [label for label in labels if label]
        yield Plane(
            path=path,
            name=" ".join([path.name, *labels]),
            suffix="".join(f"_{label[0]}{int(label[2:]):03d}" for label in labels),
            shape=(stack.height, stack.width, len(stack.channels)),
            dtype=stack.dtype,
            channels=stack.channels,
            segmented=segmented,
            may_be_one_hue=stack.is_colour and channel is None,
            pixel_size=stack.pixel_size,
            files=stack.files,
            _read=functools.partial(stack.read, index),
        )


def _choose_channels(
    path: pathlib.Path, stack: Stack, channel: str | None
) -> tuple[int, ...]:
    """Finds the channels to segment: as asked, or else gray or the colours."""
    is_nameless = stack.channels == ("0",)
    if channel is not None and not is_nameless:
        return _parse_channels(path, stack, channel)
    if stack.is_colour:
        return (0, 1, 2)
    if len(stack.channels) == 1:
        return (0,)
    three = ", or which three are red, green and blue with --channel=0,1,2"
    raise ImageError(
        f"{path}: has the channels {_list_channels(stack)}; say by number or name "
        "which shows nuclei, such as --channel=0"
        f"{three if len(stack.channels) > 2 else ''}"
    )


def _parse_channels(path: pathlib.Path, stack: Stack, channel: str) -> tuple[int, ...]:
    parts = [channel]
    if _find_channel(stack, channel) is None:  # A name may hold a comma.
        parts = channel.split(",")
    found = [_find_channel(stack, part) for part in parts]
    chosen = tuple(number for number in found if number is not None)
    if len(chosen) < len(found):
        raise ImageError(
            f"{path}: has no --channel={channel}, but {_list_channels(stack)}"
        )
    if len(chosen) not in (1, 3):
        raise ImageError(f"--channel={channel}: expected one channel, or three")
    return chosen


def _find_channel(stack: Stack, text: str) -> int | None:
    """Finds a channel by its number, or else by its name."""
    text = text.strip()
    if text.isdecimal() and int(text) < len(stack.channels):
        return int(text)
    names = [name.casefold() for name in stack.channels]
    return names.index(text.casefold()) if text.casefold() in names else None


def _list_channels(stack: Stack) -> str:
    names = [
        str(number) if name == str(number) else f"{number} = {name}"
        for number, name in enumerate(stack.channels)
    ]
    shown = names[:_MOST_NAMES] + ["..."] * (len(names) > _MOST_NAMES)
    return ", ".join(shown)
