"""Outlines for QuPath (GeoJSON) and Fiji (ImageJ ROIs), nucleus by nucleus."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Sequence

import numpy as np
import roifile

from nucseg_jax.files import TEXT
from nucseg_jax.inference.measurements import MICROMETRES
from nucseg_jax.inference.outputs.nuclei import Nuclei
from nucseg_jax.inference.outputs.outlines import Outline, Polygon, Ring
from nucseg_jax.inference.outputs.writer import Writer

# Columns that say where or what a nucleus is: its geometry and name tell.
_NOT_MEASURED = ("id", "y", "x", "unit")
_ROI_OPTIONS = (
    roifile.ROI_OPTIONS.OVERLAY_BACKGROUNDS | roifile.ROI_OPTIONS.OVERLAY_LABELS
)
# Whole coordinates have 16 bits, of which ImageJ takes those above for negative ones.
_ROI_LARGEST = 60535


class GeoJsonWriter(Writer):
    """Writes a FeatureCollection, one line a nucleus, as QuPath exports detections.

    A nucleus has the ROI's name = its id, and measurements, which QuPath reads as a
    mapping from names to numbers; a value that is not a number is left out. See
    https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html
    """

    def _open(self) -> None:
        self._separator = "\n"
        self._file = self._open_files.enter_context(
            open(self._temporary, "w", newline="\n", **TEXT)
        )
        self._file.write('{"type":"FeatureCollection","features":[')

    def _add_nuclei(self, nuclei: Nuclei) -> None:
        names, columns = _measurement_columns(nuclei.table)
        rows = zip(*columns, strict=True)
        for outline, values in zip(nuclei.outlines, rows, strict=True):
            self._file.write(self._separator + _feature(outline, names, values))
            self._separator = ",\n"

    def _complete(self) -> None:
        self._file.write("\n]}\n")
        self._file.close()


def _measurement_columns(
    table: dict[str, np.ndarray],
) -> tuple[list[str], list[list[float]]]:
    """Names, with units and as JSON, and values; booleans become 0 and 1."""
    unit = "µm" if MICROMETRES in table["unit"][:1] else "px"
    units = {"area": f" {unit}^2", "perimeter": f" {unit}"}
    measured = [name for name in table if name not in _NOT_MEASURED]
    names = [name + units.get(name, "") for name in measured]
    return (
        [json.dumps(name, ensure_ascii=False) for name in names],
        [table[name].astype(float).tolist() for name in measured],
    )


def _feature(outline: Outline, names: Sequence[str], values: Sequence[float]) -> str:
    """One nucleus as GeoJSON, RFC 7946, put together thrice as fast as by `json`."""
    polygons = [
        f"[{','.join([_format_ring(ring) for ring in rings])}]"
        for rings in outline.polygons
    ]
    kind, coordinates = "Polygon", polygons[0]
    if len(polygons) > 1:
        kind, coordinates = "MultiPolygon", f"[{','.join(polygons)}]"
    measurements = ",".join(
        [
            f"{name}:{value:.6g}"
            for name, value in zip(names, values, strict=True)
            if math.isfinite(value)
        ]
    )
    return (
        f'{{"type":"Feature","id":{outline.id},'
        f'"geometry":{{"type":"{kind}","coordinates":{coordinates}}},'
        f'"properties":{{"objectType":"detection","name":"{outline.id}",'
        f'"measurements":{{{measurements}}}}}}}'
    )


def _format_ring(ring: Ring) -> str:
    """A ring as GeoJSON has it: the last corner is the first again."""
    corners = ring.ravel().tolist()
    corners += corners[:2]
    return f"[{','.join(['[%d,%d]'] * (len(ring) + 1))}]" % tuple(corners)


class RoisWriter(Writer):
    """Writes a zip of ImageJ ROIs, for Fiji's ROI manager, each named by its id.

    Nuclei are traced ROIs, whose corners are corners of pixels; those with holes or in
    parts are composite ROIs.
    """

    def _open(self) -> None:
        self._zip = self._open_files.enter_context(
            zipfile.ZipFile(self._temporary, "w")
        )

    def _add_nuclei(self, nuclei: Nuclei) -> None:
        for outline in nuclei.outlines:
            # A fixed date: equal nuclei give equal files.
            entry = zipfile.ZipInfo(f"{outline.id}.roi")
            self._zip.writestr(entry, make_roi(outline).tobytes())

    def _complete(self) -> None:
        self._zip.close()


def make_roi(outline: Outline) -> roifile.ImagejRoi:
    """Turns an outline to an ImageJ ROI of exactly its pixels."""
    (ring, *holes), *others = outline.polygons
    corners = np.concatenate([rings[0] for rings in outline.polygons])
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    roi = roifile.ImagejRoi(
        name=str(outline.id),
        roitype=roifile.ROI_TYPE.TRACED,
        options=_ROI_OPTIONS,
        left=int(left),
        top=int(top),
        right=int(right),
        bottom=int(bottom),
    )
    if holes or others or max(right, bottom) > _ROI_LARGEST:
        roi.roitype = roifile.ROI_TYPE.RECT
        roi.multi_coordinates = _make_path(outline.polygons)
        roi.shape_roi_size = len(roi.multi_coordinates)
    else:
        roi.n_coordinates = len(ring)
        roi.integer_coordinates = ring - (left, top)
    return roi


def _make_path(polygons: list[Polygon]) -> np.ndarray:
    """All rings as one path of floats: 0, x, y = move; 1, x, y = line; 4 = close."""
    steps = []
    for ring in (ring for rings in polygons for ring in rings):
        path = np.insert(ring, 0, 1, axis=1)
        path[0, 0] = 0
        steps += [path.reshape(-1), [4]]
    return np.concatenate(steps).astype(np.float32)
