"""What the samples of a TIFF page mean: gray, colours, transparency, channels."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import numpy as np
import PIL.Image
import tifffile
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC

from nucseg_jax.data.errors import ImageError
from nucseg_jax.data.formats.stacks import COLOURS, check_background

# These write a palette only to say how gray values should be shown.
_GRAY_WITH_PALETTE = ("imagej", "ome", "lsm")
_GRAY = (
    PHOTOMETRIC.MINISWHITE,
    PHOTOMETRIC.MINISBLACK,
    PHOTOMETRIC.MASK,
    PHOTOMETRIC.LINEAR_RAW,
)
_ALPHA = (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)
_INK_SET = 332
_CMYK = 1
# Their decoder gives RGB where the file has YCbCr.
_JPEG = (COMPRESSION.OJPEG, COMPRESSION.JPEG, COMPRESSION.ALT_JPEG)

Convert = Callable[[np.ndarray], np.ndarray]  # [h, w, S] -> [h, w, C]


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a page's samples come to.

    Attributes:
      channels: Names of a pixel's values.
      is_colour: Whether these are red, green and blue.
      dtype: Of the converted values.
      convert: Samples as decoded, [h, w, S], to the channels, [h, w, C].
      convert_stored: The same where zero is not taken for white, and no palette is
        looked up; None = no difference.
    """

    channels: tuple[str, ...]
    is_colour: bool
    dtype: np.dtype
    convert: Convert
    convert_stored: Convert | None = None


def describe(path: pathlib.Path, page: tifffile.TiffPage, *, kind: str) -> Samples:
    """Finds out how to read a page's samples.

    Colours come out as RGB without transparency, gray with zero as black. Gray of less
    than 8 bits is widened to 8, as in PNG; 1 bit is bool.

    Args:
      path: The file.
      page: The first page of the series.
      kind: Of file, as tifffile names it.

    Raises:
      ImageError: If colours are written in a way that is not supported.
    """
    if page.dtype is None:
        raise ImageError(f"{path}: numbers of {page.bitspersample} bits are unknown")
    photometric, count = page.photometric, page.samplesperpixel
    if photometric == PHOTOMETRIC.PALETTE and kind in _GRAY_WITH_PALETTE:
        photometric = PHOTOMETRIC.MINISBLACK
    if photometric == PHOTOMETRIC.PALETTE and count == 1:
        table = _palette(page)
        return _colours(
            lambda pixels: table[pixels[..., 0].astype(np.intp)],
            table.dtype,
            convert_stored=functools.partial(_to_indices, path=path, table=table),
        )
    if photometric == PHOTOMETRIC.SEPARATED and count >= 4:
        if page.tags.valueof(_INK_SET, _CMYK) == _CMYK:
            return _colours(_cmyk_to_rgb, page.dtype)
        return _gray(page, count)
    if _is_ycbcr(page) and page.dtype == np.uint8:
        return _colours(_ycbcr_to_rgb, page.dtype)
    if photometric in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR) and count in (3, 4):
        convert = functools.partial(_to_rgb, bits=page.bitspersample)
        return _colours(convert, page.dtype)
    if photometric in _GRAY or photometric == PHOTOMETRIC.RGB:
        is_alpha = count == 2 and page.extrasamples[:1] in [(a,) for a in _ALPHA]
        return _gray(page, 1 if is_alpha else count)
    name = getattr(photometric, "name", photometric)
    raise ImageError(f"{path}: its colours are {name}; save it as RGB first")


def describe_gray(page: tifffile.TiffPage) -> Samples:
    """Tells how to read samples that are no colours, whatever the page says."""
    return _gray(page, page.samplesperpixel)


def _is_ycbcr(page: tifffile.TiffPage) -> bool:
    """Whether decoded samples are still luma and chroma."""
    is_aperio = page.compression == COMPRESSION.APERIO_JP2000_YCBC
    is_told = page.photometric == PHOTOMETRIC.YCBCR and page.compression not in _JPEG
    return page.samplesperpixel == 3 and (is_aperio or is_told)


def _colours(
    convert: Convert,
    dtype: np.typing.DTypeLike,
    *,
    convert_stored: Convert | None = None,
) -> Samples:
    return Samples(COLOURS, True, np.dtype(dtype), convert, convert_stored)


def _gray(page: tifffile.TiffPage, count: int) -> Samples:
    assert page.dtype is not None
    names = tuple(str(n) for n in range(count))
    keep = functools.partial(_to_gray, count=count, bits=page.bitspersample)
    if page.photometric != PHOTOMETRIC.MINISWHITE:
        return Samples(names, False, page.dtype, keep)
    invert = functools.partial(_to_inverted, count=count, bits=page.bitspersample)
    return Samples(names, False, page.dtype, invert, convert_stored=keep)


def _to_gray(pixels: np.ndarray, *, count: int, bits: int) -> np.ndarray:
    return _widen(pixels[..., :count], bits)


def _to_inverted(pixels: np.ndarray, *, count: int, bits: int) -> np.ndarray:
    pixels = _to_gray(pixels, count=count, bits=bits)
    if pixels.dtype.kind == "u" and bits > 8:
        return (2**bits - 1) - pixels  # 12 bits lie in a uint16.
    return 1 - pixels if pixels.dtype.kind == "f" else ~pixels


def _to_rgb(pixels: np.ndarray, *, bits: int) -> np.ndarray:
    return _widen(pixels[..., :3], bits)


def _widen(pixels: np.ndarray, bits: int | tuple[int, ...]) -> np.ndarray:
    """Brings 2 to 7 bits to 8; tifffile itself does so with mixed numbers of bits."""
    if pixels.dtype != np.uint8 or not isinstance(bits, int) or bits >= 8:
        return pixels
    return (pixels.astype(np.uint16) * 255 // (2**bits - 1)).astype(np.uint8)


def _palette(page: tifffile.TiffPage) -> np.ndarray:
    """The colours of all values, uint8 [shades, 3]."""
    colours = np.asarray(page.colormap).T  # uint16 [shades, 3]
    shift = 8 if colours.max() > 255 else 0  # Some programs write 8-bit colours.
    return (colours >> shift).astype(np.uint8)


def _to_indices(
    pixels: np.ndarray, *, path: pathlib.Path, table: np.ndarray
) -> np.ndarray:
    check_background(path, table[0])
    return pixels[..., :1]


def _cmyk_to_rgb(pixels: np.ndarray) -> np.ndarray:
    """Ink takes light away, black ink from all colours alike."""
    if pixels.dtype.kind == "f":
        return (1 - pixels[..., :3]) * (1 - pixels[..., 3:4])
    white = np.iinfo(pixels.dtype).max
    light = (white - pixels[..., :4]).astype(np.float64)
    rgb = np.rint(light[..., :3] * light[..., 3:4] / white)
    return rgb.astype(pixels.dtype)


def _ycbcr_to_rgb(pixels: np.ndarray) -> np.ndarray:
    image = PIL.Image.fromarray(np.ascontiguousarray(pixels), "YCbCr")
    return np.array(image.convert("RGB"))
