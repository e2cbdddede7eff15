"""Which files are found, what their results are called, and who works on them."""

import os
import pathlib

import numpy as np
import pytest

from nucseg_jax.data.images import MAX_PIXELS, ImageError
from nucseg_jax.inference.jobs import Options, find_jobs, select_shard


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def named(root):
    """Relative path of each image -> name of its results."""
    return {
        job.image.relative_to(root).as_posix(): job.name.as_posix()
        for job in find_jobs(root).jobs
    }


def test_images_are_found_in_name_order(tmp_path):
    touch(tmp_path, "c.png", "a.tif", "b.JPG", "notes.txt", "d.csv")
    assert named(tmp_path) == {"a.tif": "a", "b.JPG": "b", "c.png": "c"}
    assert [job.image.name for job in find_jobs(tmp_path).jobs] == [
        "a.tif",
        "b.JPG",
        "c.png",
    ]


def test_subfolders_are_kept(tmp_path):
    touch(tmp_path, "a.png", "day 1/a.png", "day 1/well 2/a.tif", "day 2/b.bmp")
    assert named(tmp_path) == {
        "a.png": "a",
        "day 1/a.png": "day 1/a",
        "day 1/well 2/a.tif": "day 1/well 2/a",
        "day 2/b.bmp": "day 2/b",
    }


def test_hidden_files_are_ignored(tmp_path):
    touch(tmp_path, "a.png", ".a.png", "sub/._b.tif", ".b.png.1234.tmp")
    assert named(tmp_path) == {"a.png": "a"}


def test_names_that_differ_in_their_ending_alone_do_not_clash(tmp_path):
    touch(tmp_path, "a.png", "a.tif", "b.jpg", "sub/a.png")
    assert named(tmp_path) == {
        "a.png": "a.png",
        "a.tif": "a.tif",
        "b.jpg": "b",
        "sub/a.png": "sub/a",
    }


def test_no_two_results_share_a_name(tmp_path):
    touch(tmp_path, "a.png", "a.tif", "a.jpg", "a_png.tif", "a.png.tif", "a.png.jpg")
    touch(tmp_path, "a.tif.png", "a.tif.png.png", "a.tif.png.bmp", "a_tif.png")
    names = named(tmp_path)
    assert len(set(names.values())) == len(names) == 10


def test_a_file_may_be_named_itself(tmp_path):
    touch(tmp_path, "a.b.tif")
    (job,) = find_jobs(str(tmp_path / "a.b.tif")).jobs
    assert (job.image, job.name) == (tmp_path / "a.b.tif", pathlib.Path("a.b"))


def test_folders_are_no_images(tmp_path):
    touch(tmp_path, "a.png/b.tif")
    assert named(tmp_path) == {"a.png/b.tif": "a.png/b"}


def test_a_folder_may_be_called_like_results(tmp_path):
    """The label image of x.png would be labels/x.tif, a folder of those of others."""
    touch(tmp_path, "x.png", "X.TIF/y.png", "z.png", "z.d/a.png")
    assert named(tmp_path) == {
        "x.png": "x.png",
        "X.TIF/y.png": "X.TIF/y",
        "z.png": "z",
        "z.d/a.png": "z.d/a",
    }


def test_linked_folders_are_searched_once(tmp_path):
    touch(tmp_path, "images/b/c.png", "images/e/f.png", "elsewhere/d.png")
    for link, target in {
        "images/a": "images/b",
        "images/b/e": "images/e",
        "images/b/up": "images",
        "images/x": "elsewhere",
        "images/z": "elsewhere",
        "elsewhere/self": "elsewhere",
        "elsewhere/back": "images",
        "images/all": ".",
    }.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    assert named(tmp_path / "images") == {
        "all/elsewhere/d.png": "all/elsewhere/d",
        "b/c.png": "b/c",
        "e/f.png": "e/f",
    }


def test_results_below_the_images_are_no_images(tmp_path):
    """A folder that holds its own results can be searched again."""
    touch(tmp_path, "a.png", "results/settings.json", "results/tables/a.json")
    touch(tmp_path, "results/labels/a.tif", "results/overlays/a.png", "tables/b.png")
    touch(tmp_path, "sub/settings.json", "sub/c.png")
    assert named(tmp_path) == {
        "a.png": "a",
        "sub/c.png": "sub/c",
        "tables/b.png": "tables/b",
    }


def test_images_beside_their_results_are_found_again(tmp_path):
    """Results may lie where the images do, and above other images."""
    touch(tmp_path, "day/a.png", "day/settings.json", "day/tables/a.json")
    touch(tmp_path, "day/labels/a.tif", "day/thumbnails/a.jpg", "day/raw/b.png")
    assert named(tmp_path / "day") == {"a.png": "a", "raw/b.png": "raw/b"}
    assert named(tmp_path) == {"day/a.png": "day/a", "day/raw/b.png": "day/raw/b"}


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path, monkeypatch):
    touch(tmp_path, "a.png", "secret/b.png")
    scandir = os.scandir

    def refuse(path):
        if pathlib.Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ImageError, match="secret: cannot be searched .Permission"):
        find_jobs(tmp_path)


@pytest.mark.parametrize("metadata", ["zarr.json", ".zgroup"])
def test_a_field_of_an_ome_zarr_plate_may_be_named(tmp_path, metadata):
    touch(tmp_path, f"plate.zarr/A/1/0/{metadata}")
    (job,) = find_jobs(tmp_path / "plate.zarr/A/1/0").jobs
    assert job.image == tmp_path / "plate.zarr/A/1/0" and job.is_alone


def test_the_image_one_is_in_may_be_named(tmp_path, monkeypatch):
    touch(tmp_path, "a.zarr/zarr.json")
    monkeypatch.chdir(tmp_path / "a.zarr")
    (job,) = find_jobs(".").jobs
    assert job.image == tmp_path / "a.zarr" and job.name.name == "a"


def test_a_zarr_group_of_images_is_a_folder_of_them(tmp_path):
    touch(tmp_path, "screen/.zgroup", "screen/a.zarr/zarr.json", "screen/b.png")
    assert named(tmp_path / "screen") == {"a.zarr": "a", "b.png": "b"}


@pytest.mark.parametrize("name", ["missing", "missing/a.png"])
def test_a_missing_folder_is_an_error(tmp_path, name):
    with pytest.raises(ImageError, match="missing.*: no such file or folder"):
        find_jobs(tmp_path / name)


def test_a_folder_without_images_is_an_error(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(ImageError, match=r"holds no image \(PNG, JPEG, .*Zarr\)$"):
        find_jobs(tmp_path)


def test_images_of_kinds_that_are_not_read_are_told(tmp_path):
    touch(tmp_path, "b/x.czi", "a.ND2", ".c.czi", "notes.txt")
    with pytest.raises(ImageError, match=r"Zarr\), but \.czi, \.nd2: save them as"):
        find_jobs(tmp_path)
    touch(tmp_path, "slide.svs", "labels/d.czi", "settings.json", "tables/e.json")
    jobs, foreign = find_jobs(tmp_path)
    assert [str(job.relative) for job in jobs] == ["slide.svs"]
    # What lies among the results of a run is not looked at.
    assert list(map(str, foreign)) == ["a.ND2", "b/x.czi"]
    assert find_jobs(tmp_path / "slide.svs").foreign == []


@pytest.mark.parametrize(
    "change",
    [
        {"pixel_size": 0.0},
        {"pixel_size": -0.5},
        {"pixel_size": np.inf},
        {"scale": 0.0},
        {"scale": np.nan},
    ],
)
def test_numbers_by_which_nothing_could_be_measured_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is .*; it must"):
        Options(save=("labels",), max_pixels=MAX_PIXELS, **change)


def test_shards_share_the_work_without_loss_or_doubling(tmp_path):
    touch(tmp_path, *(f"{k}.png" for k in range(5)))
    jobs = find_jobs(tmp_path).jobs
    for number in range(1, 7):
        parts = [select_shard(jobs, number, k) for k in range(number)]
        together = [job for part in parts for job in part]
        assert sorted(together, key=jobs.index) == jobs


@pytest.mark.parametrize(("number", "index"), [(2, 2), (1, -1), (0, 0)])
def test_there_is_no_such_shard(number, index):
    with pytest.raises(ValueError, match="shard_index"):
        select_shard([], number, index)
