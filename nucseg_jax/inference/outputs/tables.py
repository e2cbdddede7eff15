"""The table of one image's nuclei, and its summary, whose presence says "done"."""

from __future__ import annotations

import csv
import json
import math
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from nucseg_jax.files import TEXT
from nucseg_jax.inference.measurements import MICROMETRES, PIXELS
from nucseg_jax.inference.outputs.nuclei import Nuclei, column_names
from nucseg_jax.inference.outputs.writer import Writer
from nucseg_jax.inference.streams import PlaneInfo

# Positions to a thousandth of a pixel; everything else to six digits.
_FORMATS = {"y": "%.3f", "x": "%.3f"}
# Areas are counted in bins a factor of 2 ** (1/8) wide: twice the DNA is about twice
# the area, which is 8 bins apart. Counts of many images can be added.
BINS_PER_OCTAVE = 8
MEGAPIXEL = 1e6


class TableWriter(Writer):
    """Writes a CSV file with one row a nucleus, in the order of the windows."""

    def _open(self) -> None:
        self._file = self._open_files.enter_context(
            open(self._temporary, "w", newline="", **TEXT)
        )
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow(column_names(self.info))

    def _add_nuclei(self, nuclei: Nuclei) -> None:
        self._rows.writerows(format_rows(nuclei.table))

    def _complete(self) -> None:
        self._file.close()


def format_rows(table: Mapping[str, np.ndarray]) -> Iterator[tuple[Any, ...]]:
    """Formats the columns of `measure_nuclei` as rows of a CSV file."""
    columns = [_format_column(name, column) for name, column in table.items()]
    return zip(*columns, strict=True)


def _format_column(name: str, column: np.ndarray) -> list[Any]:
    """Formats fractions; whole numbers, words and booleans stay."""
    values = column.tolist()
    if column.dtype.kind != "f":
        return values
    template = _FORMATS.get(name, "%.6g")
    return [template % value for value in values]


class SummaryWriter(Writer):
    """Writes the summary of an image as JSON, last of all its files."""

    def __init__(
        self,
        path: pathlib.Path,
        info: PlaneInfo,
        *,
        outputs: Mapping[str, str],
        started: float | None = None,
    ):
        """Starts a summary.

        Args:
          path: The JSON file.
          info: Of the plane.
          outputs: Product -> its file, relative to the output folder.
          started: When work on the image began, by `time.perf_counter`; None = now.
        """
        super().__init__(path, info)
        self._outputs = dict(outputs)
        self._areas: list[np.ndarray] = []
        self._started = time.perf_counter() if started is None else started

    def _add_nuclei(self, nuclei: Nuclei) -> None:
        self._areas.append(nuclei.table["area"])

    def _complete(self) -> None:
        areas = np.concatenate([np.zeros(0), *self._areas])
        text = format_summary(self.info, areas, self._outputs, started=self._started)
        self._temporary.write_text(text, **TEXT)


def format_summary(
    info: PlaneInfo, areas: np.ndarray, outputs: Mapping[str, str], *, started: float
) -> str:
    """Writes the summary of an image as JSON.

    Args:
      info: Of the plane.
      areas: Of each nucleus, as `summarize` takes them.
      outputs: Product -> its file, relative to the output folder.
      started: When work on the image began, by `time.perf_counter`.
    """
    summary = {
        **summarize(info, areas),
        "settings": info.settings,
        "seconds": round(time.perf_counter() - started, 3),
        "outputs": dict(outputs),
        "area_histogram": count_areas(areas),
    }
    return json.dumps(summary, ensure_ascii=False, indent=1) + "\n"


def summarize(info: PlaneInfo, areas: np.ndarray) -> dict[str, Any]:
    """Counts nuclei, and how many there are to an area.

    Args:
      info: Of the plane.
      areas: Of each nucleus [n], in square micrometres where the pixel size is known,
        else in pixels.

    Returns:
      The row of `summary.csv`; None where something is unknown or undefined.
    """
    count, megapixels = len(areas), info.height * info.width / MEGAPIXEL
    per_megapixel = count / megapixels if megapixels else None
    per_mm2 = None
    if info.pixel_size and per_megapixel is not None:
        # A megapixel of 1 µm a pixel is a square millimetre.
        per_mm2 = per_megapixel / info.pixel_size**2
    return {
        "name": info.name,
        "source": str(info.source),
        "stamp": info.stamp,
        "height": info.height,
        "width": info.width,
        "channel": ",".join(info.seen),
        "pixel_size": info.pixel_size,
        "scale": _round(info.scale),
        "count": count,
        "density_per_megapixel": _round(per_megapixel),
        "density_per_mm2": _round(per_mm2),
        "median_area": _round(float(np.median(areas))) if count else None,
        "unit": MICROMETRES if info.pixel_size else PIXELS,
    }


def count_areas(areas: np.ndarray) -> dict[str, int]:
    """Counts areas in bins: bin k reaches from 2 ** (k / 8) to 2 ** ((k + 1) / 8).

    Returns:
      Number of the bin, as JSON's keys are words -> count; empty bins are left out.
    """
    bins = np.floor(BINS_PER_OCTAVE * np.log2(areas)).astype(int)
    places, counts = np.unique(bins, return_counts=True)
    return dict(zip(map(str, places.tolist()), counts.tolist(), strict=True))


def _round(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")
