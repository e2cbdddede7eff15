"""An output folder keeps what is not of this program, and results of one kind."""

import json
import re

import pytest

from experiments import output_folder
from nucseg_jax.inference.jobs import find_jobs

SETTINGS = {"checkpoint": "/a/small", "network": "12ab", "channel": ""}


def finish_image(folder):
    (folder / "tables").mkdir(exist_ok=True)
    (folder / "tables/a.json").write_text("{}")


@pytest.mark.parametrize(
    "name", ["labels/a.tif", "masks/a.png", "summary.csv", "settings.json"]
)
def test_what_others_made_is_not_replaced(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    with pytest.raises(ValueError, match=f"{name.split('/')[0]}, which is not of this"):
        output_folder.check_settings(tmp_path, SETTINGS)
    assert path.read_text() == "{}"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_a_file_is_no_output_folder(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="out: is not a folder"):
        output_folder.check_settings(tmp_path / "out", {"network": "a"})


def test_files_that_are_not_in_the_way_may_be_there(tmp_path):
    (tmp_path / "a.png").write_text("an image")
    output_folder.check_settings(tmp_path, SETTINGS)
    assert output_folder.read_settings(tmp_path) == SETTINGS


@pytest.mark.parametrize(
    "other",
    [
        SETTINGS | {"channel": "DAPI"},
        SETTINGS | {"network": "34cd"},
        SETTINGS | {"block": 512},
        {name: SETTINGS[name] for name in ("checkpoint", "network")},
    ],
)
def test_results_of_other_settings_are_not_mixed(tmp_path, other):
    output_folder.check_settings(tmp_path, SETTINGS)
    finish_image(tmp_path)
    with pytest.raises(ValueError, match="holds results with .*another --output"):
        output_folder.check_settings(tmp_path, other)
    assert output_folder.read_settings(tmp_path) == SETTINGS


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"threshold": 0.5, "mode": "fast"}, "mode='accurate', now it is 'fast'"),
        ({"mode": "fast", "network": "34cd"}, "checkpoint='a', now it is 'b'"),
        ({"scale": 0.5}, "scale=not given, now it is 0.5"),
    ],
)
def test_the_cause_is_told_and_not_what_follows_from_it(tmp_path, changes, told):
    before = SETTINGS | {"threshold": 0.4, "mode": "accurate", "scale": None}
    before |= {"checkpoint": "a"}
    output_folder.check_settings(tmp_path, before)
    finish_image(tmp_path)
    with pytest.raises(ValueError, match=re.escape(told)):
        output_folder.check_settings(tmp_path, before | {"checkpoint": "b"} | changes)


def test_a_run_whose_settings_were_replaced_is_stopped(tmp_path):
    """Two that start together may both find no result yet."""
    which = output_folder.identify(SETTINGS)
    output_folder.check_settings(tmp_path, SETTINGS)
    output_folder.check_unchanged(tmp_path, which)
    output_folder.check_settings(tmp_path, SETTINGS | {"checkpoint": "/b/copy"})
    output_folder.check_unchanged(tmp_path, which)
    output_folder.check_settings(tmp_path, SETTINGS | {"network": "34cd"})
    with pytest.raises(ValueError, match="another run has begun there"):
        output_folder.check_unchanged(tmp_path, which)


def test_as_long_as_there_is_no_result_settings_may_change(tmp_path):
    """The error of the first image may ask for another flag."""
    output_folder.check_settings(tmp_path, SETTINGS)
    (tmp_path / "labels").mkdir()
    other = SETTINGS | {"channel": "DAPI"}
    output_folder.check_settings(tmp_path, other)
    assert output_folder.read_settings(tmp_path) == other


def test_the_same_network_may_lie_elsewhere(tmp_path):
    output_folder.check_settings(tmp_path, SETTINGS)
    finish_image(tmp_path)
    output_folder.check_settings(tmp_path, SETTINGS | {"checkpoint": "/b/copy"})


def test_damaged_settings_are_told(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS)[:20])
    with pytest.raises(ValueError, match=r"settings\.json: is damaged"):
        output_folder.check_settings(tmp_path, SETTINGS)


def test_an_output_folder_is_one_before_its_first_image_is_finished(tmp_path):
    output_folder.check_settings(tmp_path / "out", SETTINGS)
    (tmp_path / "out/labels_zarr/a.zarr").mkdir(parents=True)
    (tmp_path / "a.png").write_text("")
    (job,) = find_jobs(tmp_path).jobs
    assert job.image == tmp_path / "a.png"


@pytest.mark.parametrize(
    ("shards", "told"), [((1, 0), "the run"), ((4, 2), "shard 2 of 4")]
)
def test_a_run_that_was_killed_has_not_come_to_its_end(tmp_path, shards, told):
    output_folder.begin_shard(tmp_path, 7, *shards)
    expected = ("7 files", f"{told} has not come to its end; start it again")
    assert list(output_folder.read_failures(tmp_path)) == [expected]
    output_folder.write_failures(tmp_path, [], *shards)
    assert not list(output_folder.read_failures(tmp_path))


def test_failures_of_others_are_neither_read_nor_removed(tmp_path):
    path = tmp_path / "failed_wells.csv"
    path.write_text("well,reason\nA1,dry\n")
    output_folder.write_failures(tmp_path, [], 1, 0)
    assert path.is_file() and not list(output_folder.read_failures(tmp_path))
