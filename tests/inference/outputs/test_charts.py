"""Histograms hold what they were given and take the page's colours."""

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from nucseg_jax.inference.outputs import charts
from nucseg_jax.inference.outputs.tables import count_areas


def bins_of(areas):
    return {int(k): n for k, n in count_areas(np.asarray(areas, float)).items()}


@pytest.mark.parametrize(
    "svg",
    [
        charts.draw_counts([3]),
        charts.draw_counts([0, 0, 0]),
        charts.draw_counts(list(range(500))),
        charts.draw_counts([1, 1_000_000]),
        charts.draw_areas(bins_of([37.5]), "px"),
        charts.draw_areas(bins_of(np.geomspace(1, 1e6, 5000)), "µm²"),
        charts.draw_areas(bins_of([0.02, 0.3]), "µm²"),
    ],
    ids=range(7),  # Matplotlib may name parts of a picture by chance.
)
def test_a_chart_is_one_svg_element_in_the_colours_of_the_page(svg):
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg")
    assert "var(--accent)" in svg and "currentColor" in svg
    colours = set(re.findall("#[0-9a-f]{6}", svg))
    assert not colours & {charts._INK, charts._ACCENT}
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", svg)


def test_nothing_to_draw_is_no_chart():
    assert charts.draw_counts([]) == ""
    assert charts.draw_areas({}, "px") == ""


@pytest.mark.parametrize("seed", range(5))
def test_the_median_of_bins_is_right_to_some_percent(seed):
    areas = np.random.default_rng(seed).lognormal(5, 0.6, 501)
    found = charts.median_area(bins_of(areas))
    assert found == pytest.approx(np.median(areas), rel=2 ** (1 / 8) - 1)


def test_there_is_no_median_of_nothing():
    assert math.isnan(charts.median_area({}))
