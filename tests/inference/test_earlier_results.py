"""Results of files that have changed since: none of them is counted twice."""

import csv
import os

import numpy as np
import PIL.Image
import pytest
import tifffile

from nucseg_jax.config import DataConfig, DecodingConfig
from nucseg_jax.data.images import MAX_PIXELS
from nucseg_jax.inference.jobs import Options, find_jobs
from nucseg_jax.inference.outputs import merge_tables
from nucseg_jax.inference.run import segment_files
from nucseg_jax.inference.segmenter import Segmenter
from tests.data.files import write_ome_parts
from tests.helpers import disc_image


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    return path


@pytest.fixture
def run(folder, tmp_path):
    """Segments a folder into `out`; returns how many results were retired.

    Its attribute `errors` has the last run's.
    """
    segmenter = Segmenter(
        lambda images: images[..., :1],
        DataConfig(framing="crop", clahe_clip_limit=0),
        decoding=DecodingConfig(method="components", min_area=0, max_hole=0),
        depth=2,
    )
    options = Options(save=("labels", "table"), max_pixels=MAX_PIXELS)

    def segment(path=folder):
        jobs = find_jobs(path).jobs
        outcomes = list(segment_files(jobs, segmenter, tmp_path / "out", options))
        segment.errors = [outcome.error for outcome in outcomes]
        return sum(outcome.num_retired for outcome in outcomes)

    return segment


@pytest.fixture
def listed(tmp_path):
    """Names the images in the tables of all."""

    def read():
        merge_tables(tmp_path / "out")
        with open(tmp_path / "out/summary.csv", newline="") as summary:
            images = [row["image"] for row in csv.DictReader(summary)]
        with open(tmp_path / "out/nuclei.csv", newline="") as nuclei:
            assert {row["image"] for row in csv.DictReader(nuclei)} == {*images}
        return images

    return read


def draw(path, seed=0):
    path.parent.mkdir(exist_ok=True)
    PIL.Image.fromarray(disc_image(32, seed=seed)[0]).save(path)


def draw_film(path, num_frames):
    frames = np.stack([disc_image(32, seed=k)[0] for k in range(num_frames)])
    tifffile.imwrite(path, frames, imagej=True, metadata={"axes": "TYX"})


def test_a_folder_after_its_subfolder(folder, run, listed):
    draw(folder / "a.png")
    draw(folder / "sub/b.png", seed=1)
    assert run(folder / "sub") == 0 and listed() == ["b.png"]
    assert run() == 1 and listed() == ["a.png", "sub/b.png"]
    assert run() == 0 and listed() == ["a.png", "sub/b.png"]


@pytest.mark.parametrize("how", ["through another folder", "by a link"])
def test_a_folder_that_is_called_otherwise(folder, run, listed, tmp_path, how):
    draw(folder / "sub/a.png")
    run()
    other = tmp_path / "other"
    if how == "by a link":
        other.symlink_to(folder, target_is_directory=True)
    else:
        other.mkdir()
        other = other / ".." / "images"
    assert run(other) == 0 and listed() == ["sub/a.png"]
    draw(folder / "sub/a.png", seed=1)
    assert run(other) == 0 and run.errors == [""] and listed() == ["sub/a.png"]
    assert run(other / "sub") == 1 and listed() == ["a.png"]


def test_links_to_one_file_are_images_by_themselves(folder, run, listed, tmp_path):
    draw(tmp_path / "store" / "x.png")
    for name in ("a.png", "b.png"):
        (folder / name).symlink_to(tmp_path / "store" / "x.png")
    for _ in range(3):
        assert run() == 0 and listed() == ["a.png", "b.png"]


def test_an_image_whose_results_get_another_name(folder, run, listed):
    draw(folder / "a.png")
    run()
    draw(folder / "a.bmp", seed=1)
    assert run() == 1 and sorted(listed()) == ["a.bmp", "a.png"]


def test_a_renamed_image(folder, run, listed, tmp_path):
    draw(folder / "old.png")
    run()
    (folder / "old.png").rename(folder / "new.png")
    assert run() == 1 and listed() == ["new.png"]
    assert (tmp_path / "out/labels/old.tif").is_file()


def test_a_stack_that_has_fewer_frames(folder, run, listed):
    draw_film(folder / "film.tif", 4)
    run()
    assert len(listed()) == 4
    draw_film(folder / "film.tif", 2)
    assert run() == 2 and listed() == ["film.tif t=0", "film.tif t=1"]


def test_an_image_that_was_damaged_since(folder, run, listed, tmp_path):
    for seed, name in enumerate(("a.png", "b.png")):
        draw(folder / name, seed)
    run()
    (folder / "b.png").write_bytes(b"\x89PNG and no more")
    assert run() == 1 and listed() == ["a.png"]
    assert (tmp_path / "out/labels/b.tif").is_file()


def test_an_image_that_cannot_be_read_for_a_while(folder, run, listed, monkeypatch):
    draw(folder / "a.png")
    run()
    with monkeypatch.context() as failing:
        failing.setattr("nucseg_jax.data.planes.open_stacks", _fail)
        assert run() == 0 and listed() == ["a.png"]


def _fail(*_, **__):
    raise OSError(5, "Input/output error")


def test_images_of_one_stamp_that_move_together_stay(folder, run, listed, tmp_path):
    """Old file systems count time in steps of two seconds."""
    for seed, name in enumerate(("a.tif", "b.tif", "c.tif")):
        tifffile.imwrite(folder / name, disc_image(32, seed=seed)[0])
        os.utime(folder / name, (1_700_000_000, 1_700_000_000))
    run()
    moved = folder.rename(tmp_path / "moved")
    assert run(moved) == 0 and listed() == ["a.tif", "b.tif", "c.tif"]


@pytest.fixture
def alike(folder, tmp_path):
    """Writes images that are alike in name, size and time, as of a camera's archive."""

    def write(path, seed):
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, disc_image(32, seed=seed)[0])
        os.utime(path, (1_700_000_000, 1_700_000_000))

    return write


def test_another_image_of_the_same_stamp_is_not_taken_for_finished(
    folder, run, alike, tmp_path
):
    alike(folder / "a.tif", seed=0)
    alike(tmp_path / "more/a.tif", seed=1)
    run()
    assert run(tmp_path / "more") == 0
    assert "a.tif under the same name" in run.errors[-1]


def test_images_that_are_gone_are_no_others_of_the_same_stamp(
    folder, run, alike, listed
):
    for seed, name in enumerate(("a.tif", "b.tif")):
        alike(folder / name, seed)
    run()
    for name in ("a.tif", "b.tif"):
        (folder / name).unlink()
    alike(folder / "c.tif", seed=2)
    assert run() == 0 and listed() == ["a.tif", "b.tif", "c.tif"]


def test_an_image_in_parts_of_which_one_is_damaged_keeps_what_is_finished(
    folder, run, listed
):
    frames = [disc_image(32, seed=seed)[0] for seed in range(2)]
    _, part = write_ome_parts(folder, np.stack(frames).astype(np.uint16))
    with tifffile.TiffFile(part) as tiff:
        start, size = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    data = bytearray(part.read_bytes())
    data[start + 10 : start + size] = bytes(size - 10)
    part.write_bytes(data)
    for _ in range(3):
        assert run() == 0 and listed() == ["a0.ome.tif t=0"]


def test_images_of_other_folders_stay(folder, run, listed, tmp_path):
    draw(folder / "a.png")
    run()
    draw(tmp_path / "more/b.png", seed=1)
    (folder / "a.png").unlink()  # To make room, as people do.
    assert run(tmp_path / "more") == 0 and listed() == ["a.png", "b.png"]
