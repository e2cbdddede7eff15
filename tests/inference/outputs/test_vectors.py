"""Outlines for QuPath and Fiji: every nucleus once, every pixel where it was."""

import json
import os
import zipfile

import numpy as np
import pytest
import roifile
import skimage.measure
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nucseg_jax.inference.measurements import measure_nuclei
from nucseg_jax.inference.outputs.nuclei import Nuclei
from nucseg_jax.inference.outputs.outlines import Outline, trace_outlines
from nucseg_jax.inference.outputs.vectors import GeoJsonWriter, RoisWriter, make_roi
from nucseg_jax.inference.streams import Window


def fill(rings, shape):
    """Pixels inside an odd number of rings, closed or not; bool."""
    inside = np.zeros(shape, bool)
    for ring in rings:
        corners = np.asarray(ring, float)
        corners = corners[:-1] if (corners[0] == corners[-1]).all() else corners
        inside ^= skimage.measure.grid_points_in_poly(shape, corners[:, ::-1] - 0.5)
    return inside


def write_geojson(path, plane, num_windows=1):
    with GeoJsonWriter(path, plane.info) as writer:
        plane.feed(writer, num_windows=num_windows)
    return json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize("num_windows", [1, 7])
def test_geojson_drawn_again_gives_the_labels(tmp_path, plane, num_windows):
    collection = write_geojson(tmp_path / "a.geojson", plane, num_windows)
    assert collection["type"] == "FeatureCollection"
    labels = np.zeros_like(plane.labels)
    for feature in collection["features"]:
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
        labels[fill(feature["geometry"]["coordinates"], labels.shape)] = feature["id"]
    np.testing.assert_array_equal(labels, plane.labels)
    assert os.listdir(tmp_path) == ["a.geojson"]


def test_geojson_is_one_line_a_nucleus(tmp_path, plane):
    write_geojson(tmp_path / "a.geojson", plane, num_windows=3)
    first, *lines, last = (tmp_path / "a.geojson").read_text("utf-8").splitlines()
    assert len(lines) == len(np.unique(plane.labels)) - 1
    assert first.endswith("[") and last == "]}"
    for line in lines:
        assert json.loads(line.removesuffix(","))["type"] == "Feature"


def test_geojson_measurements_are_those_of_the_table(tmp_path, make_plane, draw_nuclei):
    plane = make_plane(draw_nuclei(40, 50), pixel_size=0.5)
    table = measure_nuclei(
        plane.labels,
        plane.probs,
        plane.pixels,
        channels=plane.info.channels,
        pixel_size=0.5,
    )
    features = write_geojson(tmp_path / "a.geojson", plane)["features"]
    assert [feature["id"] for feature in features] == table["id"].tolist()
    for row, feature in enumerate(features):
        properties = feature["properties"]
        assert properties["objectType"] == "detection"
        assert properties["name"] == str(feature["id"])
        # QuPath reads a mapping from names to numbers; nothing else.
        found = properties["measurements"]
        assert all(type(value) in (int, float) for value in found.values())
        renamed = {"area": "area µm^2", "perimeter": "perimeter µm"}
        for name in set(table) - {"id", "y", "x", "unit"}:
            value = found.pop(renamed.get(name, name))
            assert value == pytest.approx(float(table[name][row]), rel=1e-5)
        assert not found


def test_geojson_leaves_out_what_is_no_number(tmp_path, plane):
    pixels = np.ones((*plane.labels.shape, 2))
    pixels[plane.labels == 5] = np.nan, np.inf
    window = Window(0, 0, plane.labels, plane.probs, pixels)
    with GeoJsonWriter(tmp_path / "a.geojson", plane.info) as writer:
        writer.add_nuclei(Nuclei(window, plane.info))
    text = (tmp_path / "a.geojson").read_text("utf-8")
    features = json.loads(text, parse_constant=pytest.fail)["features"]
    names = [set(feature["properties"]["measurements"]) for feature in features]
    assert len(features) == len(np.unique(plane.labels)) - 1
    intensities = {"intensity_mean_DAPI", "intensity_mean_GFP"}
    assert [intensities <= found for found in names].count(False) == 1


def test_geojson_of_parts_is_a_multipolygon(tmp_path, make_plane):
    labels = np.zeros((5, 9), np.int32)
    labels[:4, :4] = labels[1:, 6:] = 1
    labels[1:3, 1:3] = 0
    plane = make_plane(labels)
    (feature,) = write_geojson(tmp_path / "a.geojson", plane)["features"]
    geometry = feature["geometry"]
    assert geometry["type"] == "MultiPolygon"
    assert sorted(map(len, geometry["coordinates"])) == [1, 2]
    rings = [ring for polygon in geometry["coordinates"] for ring in polygon]
    np.testing.assert_array_equal(fill(rings, labels.shape), labels > 0)


def test_names_of_channels_are_escaped(tmp_path, make_plane, draw_nuclei):
    plane = make_plane(draw_nuclei(20, 20), channels=('"DAPI"\n', "γ\\H2AX"))
    features = write_geojson(tmp_path / "a.geojson", plane)["features"]
    names = set(features[0]["properties"]["measurements"])
    assert {'intensity_mean_"DAPI"\n', "intensity_mean_γ\\H2AX"} <= names


@pytest.mark.parametrize("windows", [0, 1])
def test_geojson_without_nuclei_is_an_empty_collection(tmp_path, make_plane, windows):
    plane = make_plane(np.zeros((4, 5), np.int32))
    with GeoJsonWriter(tmp_path / "a.geojson", plane.info) as writer:
        for window in [Window(0, 0, plane.labels, plane.probs, plane.pixels)] * windows:
            writer.add_nuclei(Nuclei(window, plane.info))
    assert json.loads((tmp_path / "a.geojson").read_text()) == {
        "type": "FeatureCollection",
        "features": [],
    }


def roi_rings(roi):
    coordinates = roi.coordinates(multi=True)
    return coordinates if isinstance(coordinates, list) else [coordinates]


@pytest.mark.parametrize("num_windows", [1, 7])
def test_rois_drawn_again_give_the_labels(tmp_path, plane, num_windows):
    with RoisWriter(tmp_path / "a.zip", plane.info) as writer:
        plane.feed(writer, num_windows=num_windows)
    labels = np.zeros_like(plane.labels)
    for roi in roifile.roiread(tmp_path / "a.zip"):
        assert roi.roitype == roifile.ROI_TYPE.TRACED
        labels[fill(roi_rings(roi), labels.shape)] = int(roi.name)
    np.testing.assert_array_equal(labels, plane.labels)
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        assert file.testzip() is None
        assert len(set(file.namelist())) == len(np.unique(labels)) - 1


@settings(deadline=None, max_examples=100)
@given(
    hnp.arrays(
        np.int32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=7),
        elements=st.integers(0, 1),
    ).filter(np.any)
)
def test_rois_of_any_shape_cover_its_pixels(labels):
    """Composite ROIs where there are holes or parts, as read by another program."""
    (outline,) = trace_outlines(labels)
    roi = roifile.ImagejRoi.frombytes(make_roi(outline).tobytes())
    assert roi.composite == (len(outline.polygons) > 1 or len(outline.polygons[0]) > 1)
    np.testing.assert_array_equal(fill(roi_rings(roi), labels.shape), labels > 0)
    rows, columns = np.nonzero(labels)
    assert (roi.top, roi.left) == (rows.min(), columns.min())
    assert (roi.bottom, roi.right) == (rows.max() + 1, columns.max() + 1)


@pytest.mark.parametrize("corner", [0, 32_767, 40_000, 60_500, 60_534, 60_535, 10**6])
def test_rois_keep_coordinates_beyond_16_bits(corner):
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) + (corner, 3)
    roi = make_roi(Outline(1, [[square]]))
    (ring,) = roi_rings(roifile.ImagejRoi.frombytes(roi.tobytes()))
    assert {tuple(c) for c in ring.tolist()} == {tuple(c) for c in square.tolist()}


def test_equal_nuclei_give_equal_files(tmp_path, plane):
    for name in ("a.zip", "b.zip"):
        with RoisWriter(tmp_path / name, plane.info) as writer:
            plane.feed(writer)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
