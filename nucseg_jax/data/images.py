"""Reads microscopy images, masks and label images: the one reader of the project.

PNG, JPEG and BMP go through Pillow, TIFF through tifffile, and 16-bit colour PNG
through imagecodecs (Pillow would cut it to 8 bits). EXIF rotation is applied to
images, masks and label images alike. The size is read from the header and checked
before any pixel is decoded.
"""

from __future__ import annotations

import io
import pathlib

import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageOps
import tifffile

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 1 << 28  # 16,384 x 16,384: 3 GiB as float32 RGB.

_TIFF_SUFFIXES = (".tif", ".tiff")
_PILLOW_FORMATS = ("PNG", "JPEG", "BMP")
_PNG_BIT_DEPTH = 24  # Offset of the bit depth in a PNG's header chunk.


class ImageError(ValueError):
    """A file cannot be read as an image; the message names the file and the cause."""


def is_image(path: pathlib.Path) -> bool:
    """Tells whether the file's name is one of an image that can be read."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def read_image(path: str | pathlib.Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads an image of any supported kind.

    Pixels are brought to RGB in [0, 1] as `to_rgb` says.

    Args:
      path: PNG, JPEG, BMP or TIFF file with one plane.
      max_pixels: Refuse larger images before decoding them.

    Returns:
      float32 [H, W, 3] in [0, 1].

    Raises:
      ImageError: If the file is missing, damaged, too large or no single image.
    """
    path = pathlib.Path(path)
    pixels = _read_pixels(path, max_pixels)
    return to_rgb(pixels, name=str(path))


def to_rgb(pixels: np.ndarray, *, name: str = "the image") -> np.ndarray:
    """Brings pixels of any dtype to RGB in [0, 1].

    Gray becomes three equal channels; transparency is dropped. 8-bit values are
    divided by 255, and floats within [0, 1] taken as they are. Wider integers and
    other floats are stretched between the 0.1th and 99.9th percentile of the whole
    image, because cameras fill an unknown part of their range.

    Args:
      pixels: [H, W] or [H, W, 1 to 4] of any real dtype.
      name: What to call the image in an error.

    Returns:
      float32 [H, W, 3] in [0, 1].

    Raises:
      ImageError: If the shape is another.
    """
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 2, 3, 4) or 0 in pixels.shape:
        raise ImageError(f"{name}: is {pixels.shape}; wanted is [H, W] or [H, W, 1-4]")
    unit = _to_unit_range(_drop_alpha(pixels))
    return np.ascontiguousarray(np.broadcast_to(unit, (*unit.shape[:2], 3)))


def read_mask(path: str | pathlib.Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads a binary mask: any value but zero is foreground.

    Returns:
      uint8 [H, W] of 0 and 1.

    Raises:
      ImageError: As `read_image`.
    """
    path = pathlib.Path(path)
    pixels = _read_pixels(path, max_pixels)
    if pixels.ndim == 3:
        pixels = _drop_alpha(pixels).any(axis=-1)
    return (pixels != 0).astype(np.uint8)


def read_label_image(
    path: str | pathlib.Path, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Reads a label image: 0 is background, every other value one nucleus.

    Returns:
      int32 [H, W].

    Raises:
      ImageError: As `read_image`, or if the file has colours or values that are not
        whole numbers from 0 to 2^31 - 1.
    """
    path = pathlib.Path(path)
    pixels = _read_pixels(path, max_pixels)
    if pixels.ndim == 3:
        raise ImageError(
            f"{path}: a label image has one channel, this file has {pixels.shape[-1]}"
        )
    with np.errstate(invalid="ignore"):  # The next line finds what cannot be cast.
        labels = pixels.astype(np.int32)
    if (labels != pixels).any() or (labels < 0).any():
        raise ImageError(f"{path}: label values must be whole and from 0 to 2^31 - 1")
    return labels


def _read_pixels(path: pathlib.Path, max_pixels: int) -> np.ndarray:
    """Decodes a file to [H, W] or [H, W, C] of its own dtype; 1 bit becomes bool."""
    if not path.is_file():
        raise ImageError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: the file is empty (0 bytes)")
    read = _read_tiff if path.suffix.lower() in _TIFF_SUFFIXES else _read_with_pillow
    try:
        pixels = read(path, max_pixels)
    except ImageError:
        raise
    # The decoders raise many kinds of errors on damaged files, struct.error and
    # zlib.error among them: all mean that this file cannot be read.
    except Exception as error:
        raise ImageError(f"{path}: cannot be read as an image ({error})") from error
    if 0 in pixels.shape:
        raise ImageError(
            f"{path}: the image has no pixels, its shape is {pixels.shape}"
        )
    return pixels


def _check_size(path: pathlib.Path, num_pixels: int, max_pixels: int) -> None:
    if num_pixels > max_pixels:
        raise ImageError(
            f"{path}: {num_pixels:,} pixels are more than the limit of {max_pixels:,}"
        )


def _read_tiff(path: pathlib.Path, max_pixels: int) -> np.ndarray:
    with tifffile.TiffFile(path) as tiff:
        if len(tiff.series) != 1:
            raise ImageError(f"{path}: holds {len(tiff.series)} images, not one")
        series, page = tiff.series[0], tiff.series[0].keyframe
        sizes = zip(series.axes, series.shape, strict=True)
        if any(size > 1 for axis, size in sizes if axis not in "SYX"):
            raise ImageError(
                f"{path}: has the axes {series.axes} {series.shape}; one plane of gray "
                "or RGB is wanted, so split the stack first"
            )
        if page.photometric == tifffile.PHOTOMETRIC.SEPARATED:
            raise ImageError(f"{path}: holds CMYK colours; save it as RGB first")
        _check_size(path, page.imagewidth * page.imagelength, max_pixels)
        pixels = _squeeze_plane(series.asarray(), has_samples="S" in series.axes)
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
            return _apply_colormap(pixels, np.asarray(page.colormap))
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        return ~pixels
    return np.moveaxis(pixels, 0, -1) if "SYX" in series.axes else pixels


def _squeeze_plane(pixels: np.ndarray, *, has_samples: bool) -> np.ndarray:
    """Drops axes of length one in front of [H, W] or [H, W, C]."""
    rank = 3 if has_samples else 2
    return pixels.reshape(pixels.shape[pixels.ndim - rank :])


def _apply_colormap(pixels: np.ndarray, colormap: np.ndarray) -> np.ndarray:
    """Looks palette indices up in a TIFF colour map, uint16 [3, 256]."""
    return (colormap.T[pixels] >> 8).astype(np.uint8)


def _read_with_pillow(path: pathlib.Path, max_pixels: int) -> np.ndarray:
    data = path.read_bytes()
    with PIL.Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as image:
        _check_size(path, image.width * image.height, max_pixels)
        if image.format == "PNG" and data[_PNG_BIT_DEPTH] == 16:
            return _rotate_by_exif(imagecodecs.png_decode(data), image)
        if image.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
            # To RGBA, because a palette may hold transparency.
            return np.asarray(PIL.ImageOps.exif_transpose(image).convert("RGBA"))
        return np.asarray(PIL.ImageOps.exif_transpose(image))


def _rotate_by_exif(pixels: np.ndarray, image: PIL.Image.Image) -> np.ndarray:
    """Turns decoded pixels as the image's EXIF orientation (1 to 8) asks."""
    orientation = image.getexif().get(0x0112, 1)
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _drop_alpha(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., : {2: 1, 4: 3}.get(pixels.shape[-1], pixels.shape[-1])]


def _to_unit_range(pixels: np.ndarray) -> np.ndarray:
    """Scales pixels of any dtype to float32 in [0, 1]."""
    if pixels.dtype == bool:
        return pixels.astype(np.float32)
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / np.float32(255)
    finite = pixels[np.isfinite(pixels)]
    if not finite.size:
        return np.zeros(pixels.shape, np.float32)
    low, high = np.percentile(finite, (0.1, 99.9))
    if pixels.dtype.kind == "f" and finite.min() >= 0 and finite.max() <= 1:
        low, high = 0.0, 1.0
    scale = high - low if high > low else 1.0
    known = np.nan_to_num(pixels.astype(np.float64), nan=low, posinf=high, neginf=low)
    return np.clip((known - low) / scale, 0.0, 1.0).astype(np.float32)
