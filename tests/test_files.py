"""Files appear whole or not at all."""

import errno
import os
import pathlib
import time

import numpy as np
import PIL.Image
import pytest

from nucseg_jax import files
from nucseg_jax.inference import outputs

PIXELS = np.arange(35, dtype=np.uint8).reshape(5, 7)


def fail_while_saving(monkeypatch):
    def save(picture, file, **options):
        file.write_bytes(b"half a picture")
        raise OSError("no space left on device")

    monkeypatch.setattr(PIL.Image.Image, "save", save)


def fail_while_renaming(monkeypatch):
    def replace(source, target):
        assert os.path.getsize(source) > 0
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", replace)


def interrupt_while_saving(monkeypatch):
    def save(picture, file, **options):
        file.write_bytes(b"half a picture")
        raise KeyboardInterrupt("no space left on device")

    monkeypatch.setattr(PIL.Image.Image, "save", save)


@pytest.mark.parametrize("old", [None, b"an older picture"])
@pytest.mark.parametrize(
    "inject", [fail_while_saving, fail_while_renaming, interrupt_while_saving]
)
def test_a_failure_leaves_no_part_and_keeps_the_old_file(
    tmp_path, monkeypatch, inject, old
):
    path = tmp_path / "picture.png"
    if old:
        path.write_bytes(old)
    inject(monkeypatch)
    with pytest.raises((OSError, KeyboardInterrupt), match="no space left"):
        outputs.write_png(path, PIXELS)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([old] if old else [])


def test_names_at_the_limit_of_the_file_system_can_be_written(tmp_path):
    path = tmp_path / ("ä" * 125 + ".png")
    outputs.write_png(path, PIXELS)
    assert os.listdir(tmp_path) == [path.name]


def test_temporary_names_differ_each_time(tmp_path):
    """Processes of two containers may have the same number."""
    names = {files.temporary_path(tmp_path / name).name for name in "aab"}
    assert len(names) == 3
    assert all(name.startswith(".") for name in names)


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "a" / "labels.tif"
    with pytest.raises(OSError) as caught, files.naming(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    with pytest.raises(PermissionError, match="labels.tif"), files.naming(path):
        raise PermissionError(errno.EACCES, "no", "another name")
    with pytest.raises(OSError, match="labels.tif: encoder error"), files.naming(path):
        raise OSError("encoder error -2")


def test_leftovers_are_removed_once_they_are_old(tmp_path):
    old = files.temporary_path(tmp_path / "labels" / "deep" / "a.tif")
    folder = files.temporary_path(tmp_path / "labels_zarr" / "a.zarr")
    young = files.temporary_path(tmp_path / "labels" / "b.tif")
    result = tmp_path / "labels" / "c.tif"
    (folder / "0").mkdir(parents=True)
    growing = files.temporary_path(tmp_path / "labels_zarr" / "b.zarr")
    (growing / "0").mkdir(parents=True)
    for path in (old, young, result, folder / "0" / "0", growing / "0" / "0"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"part")
    yesterday = time.time() - 2 * files.DAY
    for path in (old, result, folder / "0" / "0", folder / "0", folder, growing):
        os.utime(path, (yesterday, yesterday))
    assert files.remove_leftovers(tmp_path) == 2
    assert not old.exists() and not folder.exists()
    assert young.exists() and growing.exists() and result.exists()
    assert files.remove_leftovers(tmp_path, older_than=-1) == 2
    assert not young.exists() and not growing.exists()


def test_leftovers_may_vanish_while_they_are_looked_for(tmp_path, monkeypatch):
    """Other shards rename theirs at any moment."""
    paths = [files.temporary_path(tmp_path / name) for name in "abc"]
    for path in paths:
        path.touch()
    lstat = pathlib.Path.lstat

    def too_late(path):
        if path == paths[1]:
            path.unlink()
        return lstat(path)

    monkeypatch.setattr(pathlib.Path, "lstat", too_late)
    assert files.remove_leftovers(tmp_path, older_than=-1) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_removed_while_others_clear_up_in_it(tmp_path, monkeypatch):
    folder = tmp_path / "image.zarr"
    folder.mkdir()
    for name in "abc":
        (folder / name).touch()
    unlink = os.unlink

    def too_late(path, **options):
        unlink(path, **options)
        monkeypatch.setattr(os, "unlink", unlink)
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "unlink", too_late)
    files.remove(folder)
    assert not folder.exists()


def test_a_folder_is_tried_before_it_is_needed(tmp_path):
    files.make_folder(tmp_path / "a" / "b")
    files.make_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"/file/c"):
        files.make_folder(tmp_path / "file" / "c")
    with pytest.raises(OSError, match="file: is not a folder; name another one"):
        files.make_folder(tmp_path / "file")


def test_a_link_is_removed_and_what_it_leads_to_stays(tmp_path):
    """People keep large results on another disk."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").touch()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    files.remove(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    assert (tmp_path / "elsewhere" / "a").exists()
