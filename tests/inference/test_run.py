"""Many files: which are found, what their results are called, what is written."""

import os
import pathlib

import numpy as np
import PIL.Image
import pytest
import tifffile

from nucseg_jax.data.images import ImageError
from nucseg_jax.inference.run import FOLDERS, find_jobs, predict_files
from tests.helpers import disc_image


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def named(root):
    """Relative path of each image -> name of its results."""
    return {
        job.image.relative_to(root).as_posix(): job.name.as_posix()
        for job in find_jobs(root)
    }


def test_images_are_found_in_name_order(tmp_path):
    touch(tmp_path, "c.png", "a.tif", "b.JPG", "notes.txt", "d.csv")
    assert named(tmp_path) == {"a.tif": "a.png", "b.JPG": "b.png", "c.png": "c.png"}
    assert [job.image.name for job in find_jobs(tmp_path)] == [
        "a.tif",
        "b.JPG",
        "c.png",
    ]


def test_subfolders_are_kept(tmp_path):
    touch(tmp_path, "a.png", "day 1/a.png", "day 1/well 2/a.tif", "day 2/b.bmp")
    assert named(tmp_path) == {
        "a.png": "a.png",
        "day 1/a.png": "day 1/a.png",
        "day 1/well 2/a.tif": "day 1/well 2/a.png",
        "day 2/b.bmp": "day 2/b.png",
    }


def test_hidden_files_are_ignored(tmp_path):
    touch(tmp_path, "a.png", ".a.png", "sub/._b.tif", ".b.png.1234.tmp")
    assert named(tmp_path) == {"a.png": "a.png"}


def test_names_that_differ_in_their_ending_alone_do_not_clash(tmp_path):
    touch(tmp_path, "a.png", "a.tif", "b.jpg", "sub/a.png")
    assert named(tmp_path) == {
        "a.png": "a.png.png",
        "a.tif": "a.tif.png",
        "b.jpg": "b.png",
        "sub/a.png": "sub/a.png",
    }


def test_no_two_results_share_a_name(tmp_path):
    touch(tmp_path, "a.png", "a.tif", "a.jpg", "a_png.tif", "a.png.tif", "a.png.jpg")
    touch(tmp_path, "a.tif.png", "a.tif.png.png", "a.tif.png.bmp", "a_tif.png")
    names = named(tmp_path)
    assert len(set(names.values())) == len(names) == 10


def test_a_file_may_be_named_itself(tmp_path):
    touch(tmp_path, "a.b.tif")
    (job,) = find_jobs(str(tmp_path / "a.b.tif"))
    assert (job.image, job.name) == (tmp_path / "a.b.tif", pathlib.Path("a.b.png"))


def test_folders_are_no_images(tmp_path):
    touch(tmp_path, "a.png/b.tif")
    assert named(tmp_path) == {"a.png/b.tif": "a.png/b.png"}


@pytest.mark.parametrize("name", ["missing", "missing/a.png"])
def test_a_missing_folder_is_an_error(tmp_path, name):
    with pytest.raises(ImageError, match="missing.*: no such file or folder"):
        find_jobs(tmp_path / name)


def test_a_folder_without_images_is_an_error(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(ImageError, match=r"holds no image \(.png, .jpg"):
        find_jobs(tmp_path)


def red_channel(image):
    assert image.dtype == np.float32
    return image[..., :1]


def write_images(folder):
    """Three images of three sizes and kinds, and one that is damaged."""
    folder.mkdir()
    for seed, (name, size) in enumerate(
        {"a.png": (20, 31), "b b.jpg": (40, 24), "ä.tif": (17, 48)}.items()
    ):
        gray = disc_image(48, seed=seed)[0][: size[0], : size[1]]
        if name.endswith(".tif"):
            tifffile.imwrite(folder / name, gray)
        else:
            PIL.Image.fromarray(gray).save(folder / name)
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return {"a.png": (20, 31), "b b.png": (40, 24), "ä.png": (17, 48)}


def read(path):
    with PIL.Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


def test_a_file_that_cannot_be_read_does_not_end_the_run(tmp_path):
    sizes = write_images(tmp_path / "in")
    jobs = find_jobs(tmp_path / "in")
    outcomes = predict_files(jobs, red_channel, tmp_path / "out", threshold=0.5)
    assert [outcome.job for outcome in outcomes] == jobs
    failed = [outcome for outcome in outcomes if outcome.error]
    assert [outcome.job.image.name for outcome in failed] == ["bad.png"]
    assert "bad.png" in failed[0].error
    assert failed[0].num_nuclei == 0
    for folder in FOLDERS:
        assert set(os.listdir(tmp_path / "out" / folder)) == set(sizes)


def test_results_have_the_images_own_size_and_kind(tmp_path):
    sizes = write_images(tmp_path / "in")
    jobs = find_jobs(tmp_path / "in")
    predict_files(jobs, red_channel, tmp_path / "out", threshold=0.5)
    for name, size in sizes.items():
        mask, probs, overlay = (read(tmp_path / "out" / f / name) for f in FOLDERS)
        assert (mask.shape, probs.shape, overlay.shape) == (size, size, (*size, 3))
        assert mask.dtype == probs.dtype == overlay.dtype == np.uint8
        np.testing.assert_array_equal(mask, np.where(probs >= 128, 255, 0))


def test_probabilities_nuclei_and_outlines_are_those_predicted(tmp_path):
    (tmp_path / "in").mkdir()
    gray = np.zeros((20, 30), np.uint8)
    gray[2:8, 2:8], gray[12:18, 5:25], gray[3, 20] = 200, 130, 127
    PIL.Image.fromarray(gray).save(tmp_path / "in" / "a.png")
    (outcome,) = predict_files(
        find_jobs(tmp_path / "in"), red_channel, tmp_path / "out", threshold=0.5
    )
    assert (outcome.num_nuclei, outcome.error) == (2, "")
    np.testing.assert_array_equal(read(tmp_path / "out/probabilities/a.png"), gray)
    mask = read(tmp_path / "out/masks/a.png")
    np.testing.assert_array_equal(mask, np.where(gray >= 128, 255, 0))
    overlay = read(tmp_path / "out/overlays/a.png")
    yellow = (overlay == (255, 214, 0)).all(axis=-1)
    assert yellow.sum() == 20 + 2 * 20 + 2 * 4
    assert (mask[yellow] == 255).all()


def test_the_threshold_is_used(tmp_path):
    (tmp_path / "in").mkdir()
    PIL.Image.fromarray(np.array([[250, 0, 150, 0, 50]], np.uint8)).save(
        tmp_path / "in" / "a.png"
    )
    jobs = find_jobs(tmp_path / "in")
    for threshold, count in ((0.1, 3), (0.5, 2), (0.9, 1), (0.99, 0)):
        (outcome,) = predict_files(
            jobs, red_channel, tmp_path / "out", threshold=threshold
        )
        assert outcome.num_nuclei == count
        assert (read(tmp_path / "out/masks/a.png") == 255).sum() == count


def test_a_full_disk_ends_the_run(tmp_path, monkeypatch):
    write_images(tmp_path / "in")

    def save(picture, file, format):
        raise OSError("no space left on device")

    monkeypatch.setattr(PIL.Image.Image, "save", save)
    with pytest.raises(OSError, match="no space left"):
        predict_files(
            find_jobs(tmp_path / "in"), red_channel, tmp_path / "out", threshold=0.5
        )


def test_hidden_folders_are_left_out(tmp_path):
    for folder in (".ipynb_checkpoints", "seen"):
        (tmp_path / folder).mkdir()
        PIL.Image.new("L", (4, 4)).save(tmp_path / folder / "a.png")
    jobs = find_jobs(tmp_path)
    assert [job.name.as_posix() for job in jobs] == ["seen/a.png"]
