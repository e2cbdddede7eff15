"""Reads PNG, JPEG and BMP, which can only be decoded whole.

They go through Pillow, 16-bit PNG through imagecodecs (Pillow would cut colours to 8
bits). A file is decoded when its first region is read, and forgotten on close.
Transparency is dropped, a palette looked up, CMYK brought to RGB; 1 bit becomes bool.
"""

from __future__ import annotations

import contextlib
import pathlib
import struct
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO

import imagecodecs
import numpy as np
import PIL.BmpImagePlugin
import PIL.Image
import PIL.JpegImagePlugin
import PIL.PngImagePlugin

from nucseg_jax.data import errors
from nucseg_jax.data.formats import regions
from nucseg_jax.data.formats.stacks import COLOURS, ReadPicture, Stack, check_background

JPEG = b"\xff\xd8\xff"
# First bytes -> reader. Not PIL.Image.open, which has a limit of its own on the size.
READERS: dict[bytes, Callable[[BinaryIO], PIL.Image.Image]] = {
    b"\x89PNG\r\n\x1a\n": PIL.PngImagePlugin.PngImageFile,
    JPEG: PIL.JpegImagePlugin.JpegImageFile,
    b"BM": PIL.BmpImagePlugin.BmpImageFile,
}

_ORIENTATION = 0x0112
_PNG_SIGNATURE_BYTES = 8
_PNG_BIT_DEPTH = 24  # Offset of the bit depth in a PNG; next is the kind of colour.
_PNG_COLOUR = 2  # Bit of the kind of colour.
_BAND_ROWS = 512


def find_reader(start: bytes) -> Callable[[BinaryIO], PIL.Image.Image] | None:
    """Finds the reader for a file that starts with these bytes."""
    return next((READERS[key] for key in READERS if start.startswith(key)), None)


@contextlib.contextmanager
def open_raster(path: pathlib.Path, *, max_pixels: int) -> Iterator[list[Stack]]:
    """Reads a file's header and gives its one picture as a stack.

    Raises:
      ImageError: If the header is damaged or tells of too many pixels.
    """
    with path.open("rb") as file:
        reader = find_reader(file.read(8))
        assert reader is not None
        file.seek(0)
        image = reader(file)
        errors.check_size(path, image.width * image.height, max_pixels)
        if getattr(image, "n_frames", 1) > 1:
            raise errors.ImageError(
                f"{path}: is an animation; save its pictures as files or as a TIFF"
            )
        orientation = _orientation(image, file)
        with contextlib.closing(_Picture(path, image, file)) as picture:
            yield [_stack_of(picture, orientation)]


class _Picture:
    """A picture decoded at first need.

    Pillow's own memory is what regions are cut from: as an array of its own, the
    picture would be in memory twice.
    """

    def __init__(
        self, path: pathlib.Path, image: PIL.Image.Image, file: BinaryIO
    ) -> None:
        self._path = path
        self._image = image
        self._file = file
        self._lock = threading.Lock()
        self._pixels: np.ndarray | None = None
        self.width, self.height = image.size
        depth, kind = _png_header(image, file)
        self._is_deep = depth == 16
        if self._is_deep:
            self.is_colour, self.dtype = bool(kind & _PNG_COLOUR), np.dtype(np.uint16)
        else:
            self.is_colour = image.mode not in ("1", "L", "LA")
            self.dtype = np.dtype(bool if image.mode == "1" else np.uint8)
        self.samples = 3 if self.is_colour else 1
        self.is_indexed = image.mode == "P"

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Reads a region as it is stored, [h, w, samples]."""
        with self._lock:
            if self._is_deep:
                return self._decode_deep()[rows, columns].copy()
            self._decode()
            return self._crop(rows, columns)

    def read_indices(self, rows: slice, columns: slice) -> np.ndarray:
        """Reads a region of a picture with a palette before that is looked up."""
        with self._lock:
            self._decode()
            check_background(self._path, (self._image.getpalette() or [])[:3])
            region = (columns.start, rows.start, columns.stop, rows.stop)
            return np.array(self._image.crop(region))[..., None]

    def close(self) -> None:
        self._pixels = None
        self._image.close()

    def _decode_deep(self) -> np.ndarray:
        if self._pixels is None:
            self._file.seek(0)
            pixels = imagecodecs.png_decode(self._file.read())
            pixels = pixels.reshape(self.height, self.width, -1)
            self._pixels = pixels[..., : self.samples]
        return self._pixels

    def _decode(self) -> None:
        try:
            self._image.load()
        except Exception:
            self._image.close()  # Or another read would give what was decoded so far.
            raise

    def _crop(self, rows: slice, columns: slice) -> np.ndarray:
        """Cuts a region out of Pillow's memory, band by band to spare ours."""
        shape = (rows.stop - rows.start, columns.stop - columns.start, self.samples)
        region = np.empty(shape, self.dtype)
        for top in range(rows.start, rows.stop, _BAND_ROWS):
            bottom = min(top + _BAND_ROWS, rows.stop)
            band = self._image.crop((columns.start, top, columns.stop, bottom))
            if band.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
                # To RGBA, because a palette may hold transparency.
                band = band.convert("RGBA")
            pixels = np.asarray(band).reshape(bottom - top, shape[1], -1)
            region[top - rows.start : bottom - rows.start] = pixels[..., : shape[2]]
        return region


def _stack_of(picture: _Picture, orientation: int) -> Stack:
    shape = regions.turned_shape(picture.height, picture.width, orientation)

    def make_read(read: Callable[[slice, slice], np.ndarray]) -> ReadPicture:
        return regions.make_upright(
            lambda index, rows, columns: read(rows, columns), shape, orientation
        )

    return Stack(
        axes="YXS" if picture.is_colour else "YX",
        lengths=(*shape, 3) if picture.is_colour else shape,
        height=shape[0],
        width=shape[1],
        channels=COLOURS if picture.is_colour else ("0",),
        is_colour=picture.is_colour,
        dtype=picture.dtype,
        pixel_size=None,  # Resolutions in these formats are those of printers.
        read=make_read(picture.read),
        read_stored=make_read(picture.read_indices) if picture.is_indexed else None,
    )


def _png_header(image: PIL.Image.Image, file: BinaryIO) -> tuple[int, int]:
    """Bit depth and kind of colour; zeros for other formats."""
    if image.format != "PNG":
        return 0, 0
    file.seek(_PNG_BIT_DEPTH)
    depth, kind = file.read(2)
    return depth, kind


def _orientation(image: PIL.Image.Image, file: BinaryIO) -> int:
    """EXIF orientation, 1 to 8, without decoding the picture."""
    if image.format == "PNG" and "exif" not in image.info:
        image.info |= _png_exif(file)
    # Not the PNG reader's own getexif: it decodes the picture first.
    return PIL.Image.Image.getexif(image).get(_ORIENTATION, 1)


def _png_exif(file: BinaryIO) -> dict[str, bytes]:
    """Finds a PNG's EXIF chunk, which may be behind the pixels."""
    file.seek(_PNG_SIGNATURE_BYTES)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            return {"exif": b"Exif\0\0" + file.read(length)}
        file.seek(length + 4, 1)  # The chunk's data and its checksum.
    return {}
