"""Pixel sizes and channel names in the metadata of TIFF files."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import tifffile

from nucseg_jax.data.errors import ImageError
from nucseg_jax.data.formats.units import combine_sides, micrometres

# Programs write, and ImageJ keeps, the resolution of a print: 85 µm a pixel at 300 dpi.
_COARSEST_MICROSCOPE = 10.0

_RESOLUTION_UNITS = {2: "inch", 3: "cm"}


def pixel_size(tiff: tifffile.TiffFile, series: int) -> float | None:
    """Finds the size of a pixel.

    Where height and width differ, the side of a square of the same area is given.

    Args:
      tiff: The file.
      series: Which of its series.

    Returns:
      Micrometres; None if the file does not say it, or something that no microscope
      would give.
    """
    if tiff.is_ome:
        sizes = _ome_sizes(tiff, series)
    elif tiff.is_imagej:
        unit = str((tiff.imagej_metadata or {}).get("unit", ""))
        sizes = _resolution(tiff.series[series], unit)
    elif tiff.is_svs:
        sizes = [_svs_size(tiff)]
    else:
        unit_code = tiff.series[series].keyframe.tags.valueof(296, 2)
        unit = _RESOLUTION_UNITS.get(unit_code, "")
        sizes = _resolution(tiff.series[series], unit)
    if any(size > _COARSEST_MICROSCOPE for size in sizes if size):
        return None
    return combine_sides(sizes)


def channel_names(tiff: tifffile.TiffFile, series: int) -> tuple[str, ...]:
    """Names of the channels; empty if the file has none."""
    pixels = _ome_pixels(tiff, series) if tiff.is_ome else None
    if pixels is None:
        return ()
    channels = pixels.findall("{*}Channel")
    return tuple(c.get("Name") or str(n) for n, c in enumerate(channels))


def master_name(tiff: tifffile.TiffFile) -> str | None:
    """Name of the file with the metadata, where a part of an OME-TIFF has none."""
    binary_only = _ome_root(tiff).find("{*}BinaryOnly")
    return None if binary_only is None else binary_only.get("MetadataFile")


def part_names(tiff: tifffile.TiffFile) -> set[str | None]:
    """Names of the files that an OME-TIFF says its pages lie in."""
    places = _ome_root(tiff).iterfind("{*}Image/{*}Pixels/{*}TiffData/{*}UUID")
    return {place.get("FileName") for place in places}


def _ome_root(tiff: tifffile.TiffFile) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(tiff.ome_metadata or "<OME/>")
    except ElementTree.ParseError as error:
        raise ImageError(
            f"{tiff.filehandle.path}: its OME metadata is broken ({error}); save it "
            "again, by the program that wrote it or as a plain TIFF"
        ) from error


def _ome_pixels(tiff: tifffile.TiffFile, series: int) -> ElementTree.Element | None:
    pixels = _ome_root(tiff).findall("{*}Image/{*}Pixels")
    # Images without data are no series, which would shift the numbers.
    return pixels[series] if len(pixels) == len(tiff.series) else None


def _ome_sizes(tiff: tifffile.TiffFile, series: int) -> list[float | None]:
    pixels = _ome_pixels(tiff, series)
    if pixels is None:
        return []
    return [
        micrometres(
            pixels.get(f"PhysicalSize{axis}", ""),
            pixels.get(f"PhysicalSize{axis}Unit", "µm"),
        )
        for axis in "YX"
    ]


def _resolution(series: tifffile.TiffPageSeries, unit: str) -> list[float | None]:
    """Sizes from the resolution tags, which hold pixels a unit."""
    sizes = []
    for code in (283, 282):  # Of Y and of X.
        pixels, units = series.keyframe.tags.valueof(code, (0, 1))
        sizes.append(micrometres(units / pixels, unit) if pixels else None)
    return sizes


def _svs_size(tiff: tifffile.TiffFile) -> float | None:
    match = re.search(r"MPP\s*=\s*([\d.]+)", tiff.pages.first.description)
    return micrometres(match[1], "µm") if match else None
