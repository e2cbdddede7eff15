"""What is finished, and the tables over all images."""

import csv
import json
import os
import pathlib

import pytest

from nucseg_jax.inference.outputs import create_writers, summaries
from nucseg_jax.inference.outputs.nuclei import Nuclei

NAME = pathlib.PurePath("b/c")
FEW = '{"name": "a", "source": "a", "stamp": "", "outputs": {}}'  # No size, no count.


def run(folder, name, plane, save=("table",), **info):
    info = type(plane.info)(**{**vars(plane.info), "name": f"{name}.tif", **info})
    with create_writers(save, folder, pathlib.PurePath(name), info) as writers:
        for window in plane.windows():
            # As many channels as the plane has names for.
            pixels = window.pixels[..., : len(info.channels)]
            window = type(window)(**{**vars(window), "pixels": pixels})
            writers.add_nuclei(Nuclei(window, info))
        for band in plane.bands():
            writers.add_band(band)


def read_rows(path):
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_an_image_is_finished_when_all_that_is_asked_for_is_there(tmp_path, plane):
    assert not summaries.is_finished(tmp_path, NAME, ["labels"])
    run(tmp_path, "b/c", plane, save=["labels", "table"])
    for save in (["labels", "table"], ["labels"], []):
        assert summaries.is_finished(tmp_path, NAME, save)
    assert not summaries.is_finished(tmp_path, NAME, ["labels", "mask"])
    assert not summaries.is_finished(tmp_path, pathlib.PurePath("c"), ["labels"])
    (tmp_path / "labels" / "b" / "c.tif").unlink()
    assert not summaries.is_finished(tmp_path, NAME, ["labels"])
    assert summaries.is_finished(tmp_path, NAME, ["table"])


def test_what_was_made_before_stays_listed(tmp_path, plane):
    run(tmp_path, "b/c", plane, save=["labels", "table"], stamp="1 byte")
    run(tmp_path, "b/c", plane, save=["mask"], stamp="1 byte")
    assert summaries.is_finished(
        tmp_path, NAME, ["labels", "table", "mask"], stamp="1 byte"
    )
    assert summaries.merge_tables(tmp_path) == 1
    assert len(read_rows(tmp_path / "nuclei.csv")) > 1


def test_products_of_another_file_do_not_count(tmp_path, plane):
    run(tmp_path, "b/c", plane, save=["labels", "table"], stamp="1 byte")
    summaries.merge_tables(tmp_path)
    assert not summaries.is_finished(tmp_path, NAME, ["labels"], stamp="2 bytes")
    run(tmp_path, "b/c", plane, save=["mask"], stamp="2 bytes")
    assert summaries.find_outputs(tmp_path, NAME, "2 bytes").keys() == {
        "mask",
        "thumbnail",
    }
    summaries.merge_tables(tmp_path)
    assert not (tmp_path / "nuclei.csv").exists()


def test_results_of_other_settings_are_neither_finished_nor_joined(tmp_path, plane):
    run(tmp_path, "a", plane, settings="12ab")
    run(tmp_path, "b/c", plane, settings="34cd")
    for settings, expected in {"12ab": False, "34cd": True, "": True}.items():
        done = summaries.is_finished(tmp_path, NAME, ["table"], settings=settings)
        assert done is expected
    with pytest.raises(
        summaries.SummaryError, match=r"b/c\.tif was segmented with oth"
    ):
        summaries.merge_tables(tmp_path, "12ab")
    assert not (tmp_path / "summary.csv").exists()
    run(tmp_path, "b/c", plane, settings="12ab")
    assert summaries.merge_tables(tmp_path, "12ab") == 2


def test_a_folder_of_images_may_be_called_like_a_summary(tmp_path, plane):
    run(tmp_path, "plate.json/a", plane)
    assert summaries.merge_tables(tmp_path) == 1


@pytest.mark.parametrize(
    "text", ["", '{"name": "a"', "[]", "null", '{"name": "a"}', FEW]
)
def test_a_damaged_summary_is_not_finished_and_an_error_to_merge(tmp_path, plane, text):
    run(tmp_path, "b/c", plane)
    path = summaries.summary_path(tmp_path, NAME)
    path.write_text(text)
    assert not summaries.is_finished(tmp_path, NAME, [])
    with pytest.raises(summaries.SummaryError, match=r"c\.json.*delete it"):
        summaries.merge_tables(tmp_path)
    assert not (tmp_path / "summary.csv").exists()


def test_merged_tables_have_all_images_in_name_order(tmp_path, plane):
    for name in ("z", "a/b", "a/a", "m, n"):
        run(tmp_path, name, plane)
    assert summaries.merge_tables(tmp_path) == 4
    names = ["a/a.tif", "a/b.tif", "m, n.tif", "z.tif"]
    images = read_rows(tmp_path / "summary.csv")
    assert [row["image"] for row in images] == names
    assert {row["count"] for row in images} == {"30"}
    assert tuple(images[0]) == ("image", *summaries.SUMMARY_COLUMNS)
    nuclei = read_rows(tmp_path / "nuclei.csv")
    assert list(nuclei[0])[:2] == ["image", "id"]
    assert [row["image"] for row in nuclei] == [n for n in names for _ in range(30)]
    own = read_rows(tmp_path / "tables" / "a" / "a.csv")
    assert [{"image": "a/a.tif", **row} for row in own] == nuclei[:30]
    assert sorted(os.listdir(tmp_path)) == [
        "nuclei.csv",
        "summary.csv",
        "tables",
        "thumbnails",
    ]


def test_columns_of_images_with_other_channels_are_united(tmp_path, plane):
    run(tmp_path, "a", plane)
    run(tmp_path, "b", plane, channels=("Cy5",))
    run(tmp_path, "c", plane, channels=("GFP", "Cy5"))
    summaries.merge_tables(tmp_path)
    rows = {row["image"]: row for row in read_rows(tmp_path / "nuclei.csv")}
    columns = list(rows["a.tif"])
    names = {f"intensity_mean_{channel}" for channel in ("DAPI", "GFP", "Cy5")}
    start = columns.index("orientation") + 1
    assert set(columns[start : start + 3]) == names
    assert columns[start + 3 :] == ["probability", "touches_border"]
    filled = {
        image: {name for name in names if row[name]} for image, row in rows.items()
    }
    assert filled == {
        "a.tif": {"intensity_mean_DAPI", "intensity_mean_GFP"},
        "b.tif": {"intensity_mean_Cy5"},
        "c.tif": {"intensity_mean_GFP", "intensity_mean_Cy5"},
    }


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], []),
        (["ab", "ab"], ["a", "b"]),
        (["acd", "abd"], ["a", "b", "c", "d"]),
        (["b", "ab", "bc"], ["a", "b", "c"]),
    ],
)
def test_a_new_column_comes_after_its_left_neighbour(headers, expected):
    assert summaries.unite_columns(map(list, headers)) == expected


def test_merging_again_takes_in_what_came_since(tmp_path, plane):
    run(tmp_path, "a", plane)
    summaries.merge_tables(tmp_path)
    run(tmp_path, "b", plane)
    assert summaries.merge_tables(tmp_path) == 2
    assert len(read_rows(tmp_path / "summary.csv")) == 2
    assert len(read_rows(tmp_path / "nuclei.csv")) == 60


def test_images_without_tables_still_have_a_summary(tmp_path, plane):
    run(tmp_path, "a", plane, save=[])
    summaries.merge_tables(tmp_path)
    assert not (tmp_path / "nuclei.csv").exists()
    assert len(read_rows(tmp_path / "summary.csv")) == 1


def test_no_images_give_an_empty_summary(tmp_path):
    assert summaries.merge_tables(tmp_path) == 0
    assert read_rows(tmp_path / "summary.csv") == []


def test_a_missing_table_is_an_error_that_says_what_to_do(tmp_path, plane):
    run(tmp_path, "a", plane)
    (tmp_path / "tables" / "a.csv").unlink()
    with pytest.raises(summaries.SummaryError, match=r"a\.csv: is missing"):
        summaries.merge_tables(tmp_path)


@pytest.mark.parametrize("kept", [0, 100, 400])
def test_a_table_that_is_cut_is_an_error_that_says_what_to_do(tmp_path, plane, kept):
    run(tmp_path, "a", plane)
    path = tmp_path / "tables" / "a.csv"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(summaries.SummaryError, match=r"a\.csv: is damaged .*; delete"):
        summaries.merge_tables(tmp_path)
    assert not (tmp_path / "nuclei.csv").exists()


def test_names_that_are_no_utf8_keep_their_bytes(tmp_path, plane):
    name = os.fsdecode(b"caf\xe9")
    run(tmp_path, name, plane)
    summaries.merge_tables(tmp_path)
    assert b"caf\xe9.tif," in (tmp_path / "nuclei.csv").read_bytes()
    assert json.loads(
        (tmp_path / "tables" / f"{name}.json").read_text("utf-8", "surrogateescape")
    )["outputs"]["table"] == (f"tables/{name}.csv")
