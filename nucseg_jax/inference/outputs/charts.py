"""Histograms as SVG, to stand inside a page and take on its colours."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from nucseg_jax.inference.outputs.tables import BINS_PER_OCTAVE

_FEWEST_BARS, _MOST_BARS = 8, 30
# Bins of areas are joined until a bar stands for enough nuclei to mean something.
_FINE, _COARSE = 2000, 200
# Stand for the page's own colours, which differ by day and by night.
_INK, _ACCENT = "#010101", "#020202"
_COLOURS = {_INK: "currentColor", _ACCENT: "var(--accent)"}


def draw_counts(counts: Sequence[int]) -> str:
    """Draws how many images have how many nuclei; "" if there are no images."""
    if not counts:
        return ""
    low, high = min(counts), max(counts)
    bars = np.clip(2 * math.sqrt(len(counts)), _FEWEST_BARS, _MOST_BARS)
    width = math.ceil((high - low + 1) / bars)
    edges = np.arange(low, high + width + 1, width) - 0.5
    figure, axes = _start("nuclei an image", "images")
    axes.stairs(np.histogram(counts, edges)[0], edges, fill=True, color=_ACCENT)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return _to_svg(figure, "counts")


def draw_areas(bins: Mapping[int, int], unit: str) -> str:
    """Draws how many nuclei have which area; "" if there are no nuclei.

    Args:
      bins: Number of the bin -> count, see `tables.count_areas`.
      unit: Of the areas.
    """
    total = sum(bins.values())
    if not total:
        return ""
    joined = 1 if total >= _FINE else 2 if total >= _COARSE else 4
    places = np.array(list(bins)) // joined
    bars = np.bincount(places - places.min(), list(bins.values()))
    edges = 2 ** ((places.min() + np.arange(len(bars) + 1)) * joined / BINS_PER_OCTAVE)
    figure, axes = _start(f"area ({unit})", "nuclei")
    axes.stairs(bars, edges, fill=True, color=_ACCENT)
    axes.set_xscale("log")
    decades = math.log10(edges[-1] / edges[0])
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    return _to_svg(figure, "areas")


def median_area(bins: Mapping[int, int]) -> float:
    """The median of binned areas, to some percent; NaN if there are none."""
    if not bins:
        return math.nan
    places = sorted(bins)
    below = np.cumsum([bins[place] for place in places])
    place = places[int(np.searchsorted(below, below[-1] / 2))]
    return 2 ** ((place + 0.5) / BINS_PER_OCTAVE)


def _start(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 2.5), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label, color=_INK)
    axes.set_ylabel(y_label, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.tick_params(colors=_INK)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return figure, axes


def _to_svg(figure: Figure, name: str) -> str:
    """The SVG element alone, without a word on who made it.

    A page may hold several: ids within begin with the name.
    """
    file = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    text = file.getvalue()
    for stand_in, colour in _COLOURS.items():
        text = text.replace(stand_in, colour)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return text[text.index("<svg") :]
