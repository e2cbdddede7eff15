"""The report of a run: one page that needs no other file and no network.

Pictures are inside the page; the results' files beside it are linked.
"""

from __future__ import annotations

import base64
import collections
import math
import os
import pathlib
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nucseg_jax.files import writing_text
from nucseg_jax.inference.measurements import MICROMETRES, PIXELS
from nucseg_jax.inference.outputs import charts, markup
from nucseg_jax.inference.outputs.summaries import read_summaries
from nucseg_jax.inference.outputs.tables import MEGAPIXEL

# More would make the page slow to open: some 2 MB of pictures, 1 MB of rows.
MOST_THUMBNAILS, MOST_ROWS = 250, 2000
_UNITS = {MICROMETRES: "µm²", PIXELS: "px"}
_AREA_OF_MM2 = 1e6  # In square micrometres.


class _Totals:
    """Sums over all images, which are read one by one."""

    def __init__(self, summaries: Iterator[dict[str, Any]]):
        self.counts: list[int] = []
        self.megapixels = self.mm2 = 0.0
        self.all_calibrated = True
        self.areas: dict[str, collections.Counter[int]] = {}
        for summary in summaries:
            self._add(summary)

    def _add(self, summary: dict[str, Any]) -> None:
        pixels = summary["height"] * summary["width"]
        self.counts.append(summary["count"])
        self.megapixels += pixels / MEGAPIXEL
        size = summary["pixel_size"]
        self.all_calibrated &= size is not None
        self.mm2 += pixels * (size or 0) ** 2 / _AREA_OF_MM2
        bins = self.areas.setdefault(summary["unit"], collections.Counter())
        bins.update({int(k): n for k, n in summary["area_histogram"].items()})


def write_report(
    folder: pathlib.Path,
    *,
    title: str,
    settings: Mapping[str, object],
    failures: Sequence[tuple[str, str]] = (),
) -> pathlib.Path:
    """Writes `report.html` over all finished images of an output folder.

    Args:
      folder: The output folder.
      title: Heading.
      settings: Of the run, to print.
      failures: Files that gave no result, with the reason.

    Returns:
      The page.

    Raises:
      summaries.SummaryError: If a summary is damaged.
      OSError: If the page cannot be written.
    """
    path = folder / "report.html"
    with writing_text(path) as file:
        file.writelines(_page(folder, title, settings, failures))
    return path


def _page(
    folder: pathlib.Path,
    title: str,
    settings: Mapping[str, object],
    failures: Sequence[tuple[str, str]],
) -> Iterator[str]:
    totals = _Totals(read_summaries(folder))
    yield markup.begin(title)
    yield _totals_section(totals, len(failures))
    yield _failures_section(failures)
    yield _charts_section(totals)
    yield from _images_section(folder, len(totals.counts))
    yield markup.settings_section(settings)
    yield markup.END


def _totals_section(totals: _Totals, num_failures: int) -> str:
    nuclei = sum(totals.counts)
    values = [("Images", f"{len(totals.counts):,}"), ("Nuclei", f"{nuclei:,}")]
    if totals.mm2 and totals.all_calibrated:
        density = _number(nuclei / totals.mm2)
        values.append(("Density", f"{density} <small>/mm²</small>"))
    elif totals.megapixels:
        density = _number(nuclei / totals.megapixels)
        values.append(("Density", f"{density} <small>/megapixel</small>"))
    for unit, bins in totals.areas.items():
        if bins:
            area = _number(charts.median_area(bins), digits=2)
            values.append(("Median area", f"≈ {area} <small>{_UNITS[unit]}</small>"))
    if num_failures:
        values.append(("Failed", f"{num_failures:,}"))
    return markup.totals(values)


def _failures_section(failures: Sequence[tuple[str, str]]) -> str:
    if not failures:
        return ""
    rows = "".join(
        f"<tr><td>{markup.escape(name)}</td><td>{markup.escape(reason)}</td></tr>\n"
        for name, reason in failures
    )
    return (
        '<section class="failed"><h2>Without a result</h2>\n<table>\n'
        f"<thead><tr><th>File</th><th>Reason</th></tr></thead>\n<tbody>{rows}</tbody>"
        "</table></section>\n"
    )


def _charts_section(totals: _Totals) -> str:
    drawn = {"Nuclei an image": charts.draw_counts(totals.counts)}
    for unit, bins in totals.areas.items():
        name = f"Area of nuclei ({_UNITS[unit]})"
        drawn[name] = charts.draw_areas(bins, _UNITS[unit])
    figures = "".join(
        f"<figure><figcaption>{name}</figcaption>{svg}</figure>\n"
        for name, svg in drawn.items()
        if svg
    )
    return f'<h2>Distribution</h2>\n<div class="charts">{figures}</div>\n'


def _images_section(folder: pathlib.Path, num_images: int) -> Iterator[str]:
    yield "<h2>Images</h2>\n"
    if num_images > MOST_THUMBNAILS:
        yield (
            f'<p class="note">Of {num_images:,} images, the first '
            f"{min(num_images, MOST_ROWS):,} are listed, {MOST_THUMBNAILS:,} of them "
            "with a picture; summary.csv has them all.</p>\n"
        )
    yield (
        '<table class="images">\n<thead><tr><th class="thumbnail"></th><th>Image</th>'
        '<th class="number">Size</th><th class="number">Nuclei</th>'
        '<th class="number">Density</th><th class="number">Median area</th>'
        '<th class="files">Files</th></tr></thead>\n<tbody>\n'
    )
    for index, summary in enumerate(read_summaries(folder)):
        if index == MOST_ROWS:
            break
        yield _image_row(folder, summary, with_picture=index < MOST_THUMBNAILS)
    yield "</tbody>\n</table>\n"


def _image_row(
    folder: pathlib.Path, summary: dict[str, Any], *, with_picture: bool
) -> str:
    outputs = dict(summary["outputs"])
    thumbnail = folder / outputs.pop("thumbnail", "")
    picture = ""
    if with_picture and thumbnail.is_file():
        data = base64.b64encode(thumbnail.read_bytes()).decode()
        picture = f'<img src="data:image/jpeg;base64,{data}" alt="" loading="lazy">'
        if "overlay" in outputs:
            picture = f'<a href="{_link(outputs["overlay"])}">{picture}</a>'
    density = _with_unit(summary["density_per_megapixel"], "/megapixel")
    if summary["density_per_mm2"] is not None:
        density = _with_unit(summary["density_per_mm2"], "/mm²")
    area = _with_unit(summary["median_area"], _UNITS[summary["unit"]])
    links = " ".join(
        f'<a href="{_link(path)}">{product}</a>' for product, path in outputs.items()
    )
    name = markup.escape(summary["name"])
    return (
        f'<tr><td class="thumbnail">{picture}</td><td>{name}</td>'
        f'<td class="number">{summary["width"]:,} × {summary["height"]:,}</td>'
        f'<td class="number">{summary["count"]:,}</td>'
        f'<td class="number">{density}</td><td class="number">{area}</td>'
        f'<td class="files">{links}</td></tr>\n'
    )


def _link(path: str) -> str:
    """A path relative to the page, as a link."""
    return urllib.parse.quote(os.fsencode(path))


def _with_unit(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{_number(value)} {unit}"


def _number(value: float, *, digits: int = 3) -> str:
    """Rounds to some digits, but never drops whole ones."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"
