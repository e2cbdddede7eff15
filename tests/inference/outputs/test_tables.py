"""The table of an image and its summary."""

import csv
import json
import math
import os
import time

import numpy as np
import pytest

from nucseg_jax.inference.measurements import measure_nuclei
from nucseg_jax.inference.outputs import tables
from nucseg_jax.inference.outputs.nuclei import Nuclei
from nucseg_jax.inference.streams import Window


def read_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_summary(path, plane, **options):
    outputs = {"labels": "labels/a.tif"}
    with tables.SummaryWriter(path, plane.info, outputs=outputs, **options) as writer:
        plane.feed(writer, num_windows=2)
    return json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize("num_windows", [1, 4])
@pytest.mark.parametrize("pixel_size", [None, 0.5])
def test_the_table_has_the_measurements(
    tmp_path, make_plane, draw_nuclei, num_windows, pixel_size
):
    plane = make_plane(draw_nuclei(70, 90), pixel_size=pixel_size)
    with tables.TableWriter(tmp_path / "a.csv", plane.info) as writer:
        plane.feed(writer, num_windows=num_windows)
    table = measure_nuclei(
        plane.labels,
        plane.probs,
        plane.pixels,
        channels=plane.info.channels,
        pixel_size=pixel_size,
    )
    rows = read_rows(tmp_path / "a.csv")
    assert list(rows[0]) == list(table)
    assert [int(row["id"]) for row in rows] == table["id"].tolist()
    assert {row["unit"] for row in rows} == {"um" if pixel_size else "px"}
    touches = [row["touches_border"] == "True" for row in rows]
    np.testing.assert_array_equal(touches, table["touches_border"])
    for name in set(table) - {"unit", "touches_border"}:
        found = [float(row[name]) for row in rows]
        np.testing.assert_allclose(found, table[name], rtol=1e-5, atol=6e-4)
    assert os.listdir(tmp_path) == ["a.csv"]


def test_positions_in_large_images_keep_their_fractions(tmp_path, plane):
    info = type(plane.info)(**{**vars(plane.info), "height": 10**6, "width": 10**6})
    window = plane.windows()[0]
    far = Window(912_345, 812_345, window.labels, window.probs, window.pixels)
    with tables.TableWriter(tmp_path / "a.csv", info) as writer:
        writer.add_nuclei(Nuclei(far, info))
    near = measure_nuclei(window.labels, window.probs)
    found = [float(row["y"]) for row in read_rows(tmp_path / "a.csv")]
    np.testing.assert_allclose(found, near["y"] + 912_345, rtol=0, atol=5.1e-4)


@pytest.mark.parametrize("num_windows", [0, 1])
def test_a_table_without_nuclei_has_a_header(tmp_path, plane, make_plane, num_windows):
    empty = make_plane(np.zeros((4, 5), np.int32))
    blank = Window(0, 0, empty.labels, empty.probs, empty.pixels)
    with tables.TableWriter(tmp_path / "full.csv", plane.info) as writer:
        plane.feed(writer)
    with tables.TableWriter(tmp_path / "empty.csv", empty.info) as writer:
        for _ in range(num_windows):
            writer.add_nuclei(Nuclei(blank, empty.info))
    full = (tmp_path / "full.csv").read_text("utf-8").splitlines()
    assert (tmp_path / "empty.csv").read_text("utf-8").splitlines() == full[:1]


def test_a_summary_counts(tmp_path, plane):
    started = time.perf_counter() - 1000
    summary = write_summary(tmp_path / "a.json", plane, started=started)
    areas = np.bincount(plane.labels.ravel())[1:]
    areas = areas[areas > 0]
    assert summary["name"] == "folder/a & b.tif"
    assert summary["source"] == "/images/folder/a & b.tif"
    assert (summary["height"], summary["width"]) == plane.labels.shape
    assert summary["count"] == len(areas) == 30
    assert summary["density_per_megapixel"] == pytest.approx(30e6 / 6300, rel=1e-5)
    assert summary["median_area"] == np.median(areas)
    assert summary["unit"] == "px"
    assert summary["pixel_size"] is None and summary["density_per_mm2"] is None
    assert 1000 <= summary["seconds"] < 1060
    assert summary["outputs"] == {"labels": "labels/a.tif"}
    assert sum(summary["area_histogram"].values()) == 30


def test_a_summary_in_micrometres(tmp_path, make_plane):
    labels = np.zeros((1000, 2000), np.int32)
    labels[:20, :30] = 1
    labels[50:60, 50:60] = 2
    plane = make_plane(labels, pixel_size=0.5)
    summary = write_summary(tmp_path / "a.json", plane)
    # Half a square millimetre: 0.5 mm by 1 mm.
    assert summary["density_per_mm2"] == pytest.approx(4)
    assert summary["density_per_megapixel"] == pytest.approx(1)
    assert summary["median_area"] == pytest.approx((600 + 100) / 2 / 4)
    assert summary["unit"] == "um"
    assert 0 <= summary["seconds"] < 60


@pytest.mark.parametrize("shape", [(4, 5), (0, 5)])
def test_a_summary_without_nuclei(tmp_path, make_plane, shape):
    summary = write_summary(tmp_path / "a.json", make_plane(np.zeros(shape, np.int32)))
    assert summary["count"] == 0
    assert summary["median_area"] is None
    assert summary["density_per_megapixel"] == (0 if shape[0] else None)
    assert summary["area_histogram"] == {}


def test_a_name_that_is_no_utf8_is_kept(tmp_path, plane):
    name = os.fsdecode(b"caf\xe9.tif")
    info = type(plane.info)(**{**vars(plane.info), "name": name})
    with tables.SummaryWriter(tmp_path / "a.json", info, outputs={}) as writer:
        pass
    text = (tmp_path / "a.json").read_text("utf-8", errors="surrogateescape")
    assert json.loads(text)["name"] == name
    assert writer.path.read_bytes().count(b"caf\xe9.tif") == 1


@pytest.mark.parametrize("area", [0.01, 1.0, 2**0.5, 3.7, 100.0, 12345.6])
def test_areas_are_counted_in_bins_an_eighth_of_an_octave_wide(area):
    ((place, count),) = tables.count_areas(np.array([area, area])).items()
    low, high = (2 ** ((int(place) + k) / tables.BINS_PER_OCTAVE) for k in (0, 1))
    assert low <= area * (1 + 1e-12) and area < high * (1 + 1e-12)
    assert count == 2
    assert math.log2(high / low) == pytest.approx(1 / 8)
