"""Writes image files of many kinds, as tests need them."""

import io
import pathlib
import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np
import PIL.Image
import tifffile
import zarr

from tests.helpers import disc_image


def noise(shape: tuple[int, ...], dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    """Random values over the whole range of a type, in [0, 1] for floats."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype) == bool:
        return rng.integers(0, 2, shape).astype(bool)
    if np.dtype(dtype).kind == "f":
        return rng.random(shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def encode(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def encode_png16(pixels: np.ndarray) -> bytes:
    return imagecodecs.png_encode(pixels)


def encode_tiff(pixels: np.ndarray, **options: Any) -> bytes:
    """TIFF of gray, unless the options say otherwise."""
    buffer = io.BytesIO()
    options.setdefault("photometric", "minisblack")
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png_header(width: int, height: int) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header


def write_film(path: pathlib.Path, *, seed: int, num_damaged: int = 0) -> None:
    """Writes three frames, the second and what follows of which may be damaged."""
    frames = np.stack([disc_image(32, seed=seed + k)[0] for k in range(3)])
    tifffile.imwrite(
        path,
        frames,
        compression="zlib",
        photometric="minisblack",
        metadata={"axes": "TYX"},
    )
    with tifffile.TiffFile(path) as tiff, path.open("r+b") as file:
        for page in tiff.pages[1 : 1 + num_damaged]:
            file.seek(page.dataoffsets[0])
            file.write(b"\xff" * page.databytecounts[0])


def write_ome_parts(
    folder: pathlib.Path, pixels: np.ndarray, *, has_master: bool = False
) -> list[pathlib.Path]:
    """Writes each time of uint16 [T, H, W] to a file, as one OME-TIFF of all.

    With a master, the first file describes the whole, and the others name it.
    """
    times, height, width = pixels.shape
    parts = "".join(
        f'<TiffData FirstT="{time}" IFD="0" PlaneCount="1">'
        f'<UUID FileName="a{time}.ome.tif">urn:uuid:{time}</UUID></TiffData>'
        for time in range(times)
    )
    paths = [folder / f"a{time}.ome.tif" for time in range(times)]
    whole = (
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" '
        f'Type="uint16" SizeX="{width}" SizeY="{height}" SizeC="1" SizeZ="1" '
        f'SizeT="{times}"><Channel ID="Channel:0" SamplesPerPixel="1"/>{parts}'
        "</Pixels></Image>"
    )
    name_master = f'<BinaryOnly MetadataFile="{paths[0].name}" UUID="urn:uuid:0"/>'
    for time, path in enumerate(paths):
        content = name_master if has_master and time else whole
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy'
            f'.org/Schemas/OME/2016-06" UUID="urn:uuid:{time}">{content}</OME>'
        )
        options = {"description": xml, "metadata": None, "compression": "zlib"}
        tifffile.imwrite(path, pixels[time], **options)
    return paths


def write_ome_zarr(
    path: pathlib.Path,
    pixels: np.ndarray,
    axes: str,
    *,
    version: str = "0.4",
    scale: tuple[float, ...] | None = None,
    unit: str | None = "micrometer",
    labels: tuple[str, ...] = (),
    chunks: tuple[int, ...] | None = None,
) -> pathlib.Path:
    """Writes an image with two levels by the text of the specification."""
    zarr_format = 3 if version == "0.5" else 2
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    group.attrs.update(ome_metadata(axes, version, scale, unit, labels))
    for level, array in (("0", pixels), ("1", pixels[..., ::2, ::2])):
        group.create_array(
            level, data=np.ascontiguousarray(array), chunks=chunks or "auto"
        )
    return path


def ome_metadata(
    axes: str,
    version: str,
    scale: tuple[float, ...] | None = None,
    unit: str | None = None,
    labels: tuple[str, ...] = (),
) -> dict[str, Any]:
    kinds = {"t": "time", "c": "channel"}
    described = [{"name": a, "type": kinds.get(a, "space")} for a in axes]
    for axis in described:
        if unit and axis["type"] == "space":
            axis["unit"] = unit
    scale = scale or (1.0,) * len(axes)
    levels = [
        {
            "path": str(level),
            "coordinateTransformations": [
                {"type": "scale", "scale": [s * 2**level for s in scale]}
            ],
        }
        for level in (0, 1)
    ]
    content: dict[str, Any] = {"multiscales": [{"axes": described, "datasets": levels}]}
    if labels:
        content["omero"] = {"channels": [{"label": label} for label in labels]}
    if version == "0.5":
        return {"ome": {"version": "0.5", **content}}
    content["multiscales"][0]["version"] = version
    return content
