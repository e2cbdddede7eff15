"""All products of a plane at once: where they lie, and that they agree."""

import csv
import json
import os
import pathlib
import time

import numpy as np
import pytest
import roifile
import tifffile
import zarr

from nucseg_jax.inference import outputs
from nucseg_jax.inference.outputs import PRODUCTS, rasters
from nucseg_jax.inference.outputs.nuclei import Nuclei
from nucseg_jax.inference.streams import Window

NAMES = [product.name for product in PRODUCTS]
NAME = pathlib.PurePath("b", "c 1.x")
LAYOUT = {
    "labels": "labels/b/c 1.x.tif",
    "mask": "masks/b/c 1.x.png",
    "probs": "probabilities/b/c 1.x.tif",
    "overlay": "overlays/b/c 1.x.png",
    "table": "tables/b/c 1.x.csv",
    "geojson": "geojson/b/c 1.x.geojson",
    "rois": "rois/b/c 1.x.zip",
    "labels_zarr": "labels_zarr/b/c 1.x.zarr",
}
ALWAYS = {"thumbnails/b/c 1.x.jpg", "tables/b/c 1.x.json"}


def files_of(folder):
    """Files below a folder; an OME-Zarr counts as one."""
    found = set()
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        inside = any(parent.suffix == ".zarr" for parent in relative.parents)
        if not inside and (path.is_file() or path.suffix == ".zarr"):
            found.add(relative.as_posix())
    return found


def save(folder, plane, names, **feed):
    with outputs.create_writers(names, folder, NAME, plane.info) as writers:
        plane.feed(writers, **feed)


def test_every_product_has_its_place(tmp_path, plane):
    save(tmp_path, plane, NAMES)
    assert files_of(tmp_path) == {*LAYOUT.values(), *ALWAYS}
    summary = json.loads((tmp_path / "tables/b/c 1.x.json").read_text())
    assert summary["outputs"] == {**LAYOUT, "thumbnail": "thumbnails/b/c 1.x.jpg"}


@pytest.mark.parametrize("name", NAMES)
def test_a_product_alone_has_the_summary_beside_it(tmp_path, plane, name):
    save(tmp_path, plane, [name])
    assert files_of(tmp_path) == {LAYOUT[name], *ALWAYS}


def test_a_streamed_mask_is_called_a_tiff(tmp_path, plane, monkeypatch):
    monkeypatch.setattr(rasters, "HELD_PIXELS", 0)
    save(tmp_path, plane, ["mask"])
    assert "masks/b/c 1.x.tif" in files_of(tmp_path)


@pytest.mark.parametrize("feed", [{}, {"num_windows": 5, "heights": (9, 33, 2)}])
def test_all_products_agree(tmp_path, plane, feed):
    save(tmp_path, plane, NAMES, **feed)
    paths = {name: tmp_path / path for name, path in LAYOUT.items()}
    labels = tifffile.imread(paths["labels"])
    ids = np.unique(labels)[1:].tolist()
    np.testing.assert_array_equal(labels, plane.labels)
    group = zarr.open_group(str(paths["labels_zarr"]), mode="r")
    np.testing.assert_array_equal(group["0"][:], labels)
    with open(paths["table"], newline="") as file:
        assert [int(row["id"]) for row in csv.DictReader(file)] == ids
    features = json.loads(paths["geojson"].read_text("utf-8"))["features"]
    assert [feature["id"] for feature in features] == ids
    assert [int(roi.name) for roi in roifile.roiread(paths["rois"])] == ids
    summary = json.loads((tmp_path / "tables/b/c 1.x.json").read_text())
    assert summary["count"] == len(ids)


def test_windows_and_bands_may_come_in_any_order(tmp_path, plane):
    for name, first in (("a", "windows"), ("b", "bands")):
        folder = tmp_path / name
        with outputs.create_writers(NAMES, folder, NAME, plane.info) as writers:
            for kind in (first, {"windows": "bands", "bands": "windows"}[first]):
                if kind == "windows":
                    for window in plane.windows(3):
                        writers.add_nuclei(Nuclei(window, plane.info))
                else:
                    for band in plane.bands(20):
                        writers.add_band(band)
    for path in LAYOUT.values():
        if not path.endswith(".zarr"):
            one, other = (tmp_path / name / path for name in "ab")
            if not path.endswith(".tif"):
                assert one.read_bytes() == other.read_bytes(), path
            else:
                np.testing.assert_array_equal(*map(tifffile.imread, (one, other)))


def test_a_window_is_measured_and_traced_once(tmp_path, plane, monkeypatch):
    from nucseg_jax.inference.outputs import nuclei

    calls = []
    for name in ("measure_nuclei", "trace_outlines"):
        original = getattr(nuclei, name)

        def count(labels, *args, name=name, original=original, **options):
            calls.append((name, labels.size > 0))
            return original(labels, *args, **options)

        monkeypatch.setattr(nuclei, name, count)
    save(tmp_path, plane, NAMES, num_windows=3)
    assert calls.count(("measure_nuclei", True)) == 3
    assert calls.count(("trace_outlines", True)) == 3


def test_unknown_products_are_refused_with_the_choices(tmp_path, plane):
    with pytest.raises(ValueError, match="'lables'; choose from labels, mask, probs"):
        outputs.create_writers(["mask", "lables"], tmp_path, NAME, plane.info)
    assert files_of(tmp_path) == set()


@pytest.mark.parametrize("name", ["/etc/a", "../a", "b/../../a", ""])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, plane, name):
    with pytest.raises(ValueError, match="not a name inside"):
        outputs.create_writers([], tmp_path / "out", pathlib.PurePath(name), plane.info)
    assert not (tmp_path / "out").exists()


def test_every_product_says_in_one_line_what_it_is():
    for product in PRODUCTS:
        assert product.help and "\n" not in product.help and len(product.help) < 75


def test_a_folder_that_cannot_be_written_leaves_no_other_files(tmp_path, plane):
    (tmp_path / "geojson").write_text("in the way")
    with pytest.raises(OSError, match="geojson"):
        outputs.create_writers(NAMES, tmp_path, NAME, plane.info)
    assert files_of(tmp_path) == {"geojson"}


def test_rows_that_are_missing_or_out_of_order_are_an_error(tmp_path, plane):
    for bands, message in (
        (plane.bands(30)[:1], "30 of 70 rows"),
        (plane.bands(30)[1:], "expected row 0, got row 30"),
        (plane.bands(30) + plane.bands(30)[1:], "expected row 70, got row 30"),
    ):
        with pytest.raises(ValueError, match=message):
            with outputs.create_writers(NAMES, tmp_path, NAME, plane.info) as writers:
                for band in bands:
                    writers.add_band(band)
        assert files_of(tmp_path) == set()


def test_vectors_and_tables_of_1000_nuclei_a_megapixel_are_written_in_time(
    tmp_path, make_plane, draw_nuclei
):
    """The goal is 0.15 s beside measuring; some room for slow machines."""
    plane = make_plane(draw_nuclei(1000, 1000, spacing=31))
    assert len(np.unique(plane.labels)) > 1000
    window = Window(0, 0, plane.labels, plane.probs, plane.pixels)

    def seconds(names) -> float:
        with outputs.create_writers(names, tmp_path, NAME, plane.info) as writers:
            start = time.thread_time()
            writers.add_nuclei(Nuclei(window, plane.info))
            taken = time.thread_time() - start
            for band in plane.bands():
                writers.add_band(band)
        return taken

    base, all_three = (
        min(seconds(names) for _ in range(9))
        for names in ([], ["table", "geojson", "rois"])
    )
    assert all_three - base < 0.3


def test_writing_again_replaces_what_was_there(tmp_path, plane, make_plane):
    save(tmp_path, plane, NAMES)
    other = make_plane(np.full((7, 8), 5))
    save(tmp_path, other, NAMES)
    assert files_of(tmp_path) == {*LAYOUT.values(), *ALWAYS}
    found = tifffile.imread(tmp_path / LAYOUT["labels"])
    np.testing.assert_array_equal(found, other.labels)
    assert not [name for name in os.listdir(tmp_path / "labels" / "b") if "tmp" in name]
