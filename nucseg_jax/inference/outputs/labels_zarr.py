"""The label image as OME-Zarr pyramid.

Version 0.4 of the format, on Zarr 2: whoever reads 0.5 reads 0.4, the reverse is not
so (QuPath and Bio-Formats read Zarr 2). https://ngff.openmicroscopy.org/0.4/

Files are written one at a time: of several at once, zarr goes on writing the others
after one has failed, into a folder that is being removed.
"""

from __future__ import annotations

import pathlib
import zlib
from typing import Any

import numpy as np
import zarr
import zarr.storage

from nucseg_jax import files
from nucseg_jax.inference.outputs import pyramid
from nucseg_jax.inference.outputs.rows import RowBlocks
from nucseg_jax.inference.outputs.writer import Writer
from nucseg_jax.inference.streams import Band, PlaneInfo

CHUNK = 512


class LabelsZarrWriter(Writer):
    """Writes uint32 labels, each level by rows of whole chunks, and reads them back."""

    needs_bands = True

    def _open(self) -> None:
        arrays = create_pyramid(self._temporary, self.info)
        self._levels = [_Level(array, level) for level, array in enumerate(arrays)]

    def _add_band(self, band: Band) -> None:
        for level in self._levels:
            level.add(band.top, band.labels)

    def _complete(self) -> None:
        for level in self._levels:
            level.finish()


class _Level:
    """One level, filled from top to bottom."""

    def __init__(self, array: zarr.Array, level: int):
        self._array, self._level = array, level
        self._blocks = RowBlocks(CHUNK)
        self._checksums: list[int] = []

    def add(self, top: int, labels: np.ndarray) -> None:
        """Takes the next rows of the image, [h, W]."""
        for block in self._blocks.push(pyramid.sample(labels, top, self._level)):
            self._write(block)

    def finish(self) -> None:
        """Writes what is left and compares the level with what went in."""
        for block in self._blocks.rest():
            self._write(block)
        for index, checksum in enumerate(self._checksums):
            rows: Any = self._array[index * CHUNK : (index + 1) * CHUNK]
            if zlib.crc32(np.ascontiguousarray(rows).data) != checksum:
                raise OSError("reads back differently from what was written")

    def _write(self, block: np.ndarray) -> None:
        top, rows = len(self._checksums) * CHUNK, block.astype(np.uint32)
        for left in range(0, rows.shape[1], CHUNK):
            columns = slice(left, left + CHUNK)
            self._array[top : top + len(rows), columns] = rows[:, columns]
        self._checksums.append(zlib.crc32(rows.data))


def create_pyramid(path: pathlib.Path, info: PlaneInfo) -> list[zarr.Array]:
    """Creates the folder with its metadata and an array a level, all background.

    A folder that is there is replaced.
    """
    # Zarr would write several files of a group at once; in memory that does no harm.
    described: dict[str, Any] = {}
    group = zarr.create_group(
        zarr.storage.MemoryStore(described),
        zarr_format=2,
        attributes=_attributes(info),
    )
    shapes = _level_shapes(info)
    for level, shape in enumerate(shapes):
        group.create_array(
            str(level),
            shape=shape,
            chunks=(CHUNK, CHUNK),
            dtype=np.uint32,
            fill_value=0,
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )
    files.remove(path)
    for key, content in described.items():
        (path / key).parent.mkdir(parents=True, exist_ok=True)
        (path / key).write_bytes(content.to_bytes())
    return [
        # Of a text, zarr would take "::" for a chain of addresses.
        zarr.open_array(path, path=str(level), mode="r+", zarr_format=2)
        for level in range(len(shapes))
    ]


def _level_shapes(info: PlaneInfo) -> list[tuple[int, int]]:
    """Shapes of the levels until one chunk holds all."""
    return pyramid.level_shapes(info.height, info.width, CHUNK)


def _attributes(info: PlaneInfo) -> dict[str, Any]:
    """Metadata of a multiscale label image; pixels of unknown size get no unit."""
    unit = {"unit": "micrometer"} if info.pixel_size else {}
    size = info.pixel_size or 1.0
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [
                {"type": "scale", "scale": [size * 2**level] * 2}
            ],
        }
        for level in range(len(_level_shapes(info)))
    ]
    axes = [{"name": name, "type": "space", **unit} for name in "yx"]
    multiscale = {"version": "0.4", "name": "nuclei", "axes": axes}
    return {
        "multiscales": [{**multiscale, "datasets": datasets, "type": "nearest"}],
        "image-label": {"version": "0.4"},
    }
