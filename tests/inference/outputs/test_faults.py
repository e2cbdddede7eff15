"""Disks that fill up and processes that are killed leave no part of a file behind."""

import contextlib
import errno
import os
import pathlib
import resource
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from nucseg_jax.files import remove_leftovers
from nucseg_jax.inference import outputs
from nucseg_jax.inference.outputs import PRODUCTS, rasters, tiff

NAMES = [product.name for product in PRODUCTS]
NAME = pathlib.PurePath("a")


@contextlib.contextmanager
def file_size_limit(num_bytes):
    """Makes every write beyond so many bytes of a file fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save(folder, plane, names):
    with outputs.create_writers(names, folder, NAME, plane.info) as writers:
        plane.feed(writers, num_windows=2, heights=(100, 100))


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_write_that_fails_names_the_file_and_leaves_nothing(
    tmp_path, noisy, monkeypatch, name, streamed
):
    monkeypatch.setattr(rasters, "HELD_PIXELS", 0 if streamed else 10**6)
    monkeypatch.setattr(tiff, "TILE", 64)
    monkeypatch.setattr(tiff, "OVERVIEW", 64)
    folder = {p.name: p.folder for p in PRODUCTS}[name]
    with pytest.raises(OSError) as caught, file_size_limit(1000):
        save(tmp_path, noisy, [name])
    assert caught.value.errno == errno.EFBIG
    assert f"/{folder}/a." in str(caught.value)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_write_that_fails_keeps_the_older_files(tmp_path, plane, noisy, name):
    save(tmp_path, plane, [name])
    before = contents(tmp_path)
    with pytest.raises(OSError), file_size_limit(1000):
        save(tmp_path, noisy, [name])
    assert contents(tmp_path) == before
    assert outputs.is_finished(tmp_path, NAME, [name])


def test_no_file_of_a_plane_appears_when_one_fails(tmp_path, noisy):
    """The mask would fit; the labels do not."""
    with pytest.raises(OSError, match="labels"), file_size_limit(30_000):
        save(tmp_path, noisy, ["mask", "labels"])
    assert contents(tmp_path) == {}


@pytest.fixture
def full_disk(tmp_path):
    """A disk of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount program")
    if done.returncode:
        pytest.skip(f"no right to mount a small disk: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_an_error_that_leaves_it_empty(
    full_disk, noisy, monkeypatch, name, streamed
):
    monkeypatch.setattr(rasters, "HELD_PIXELS", 0 if streamed else 10**6)
    monkeypatch.setattr(tiff, "TILE", 64)
    monkeypatch.setattr(tiff, "OVERVIEW", 64)
    (full_disk / "filler").write_bytes(bytes(248 * 1024))
    with pytest.raises(OSError, match="/a.") as caught:
        save(full_disk, noisy, [name])
    assert caught.value.errno == errno.ENOSPC
    assert set(contents(full_disk)) == {full_disk / "filler"}


@pytest.mark.parametrize("free", [0, 8, 12])
def test_zarr_writes_one_file_at_a_time(full_disk, noisy, free):
    """None is still being written when another has failed and the folder goes."""
    (full_disk / "filler").write_bytes(bytes((256 - free) * 1024))
    for _ in range(50):
        with pytest.raises(OSError) as caught:
            save(full_disk, noisy, ["labels_zarr"])
        assert caught.value.errno == errno.ENOSPC
        assert set(contents(full_disk)) == {full_disk / "filler"}


CHILD = """
    import pathlib, sys, time
    import numpy as np
    from nucseg_jax.inference import outputs
    from nucseg_jax.inference.outputs import rasters
    from nucseg_jax.inference.outputs.nuclei import Nuclei
    from nucseg_jax.inference.streams import Band, PlaneInfo, Window

    rasters.HELD_PIXELS = 0
    info = PlaneInfo("a", pathlib.Path("a"), 600, 400, ("0",), ("0",), None, ("x",))
    labels = np.arange(300 * 400, dtype=np.int32).reshape(300, 400)
    ones = np.ones((300, 400, 1), np.float32)
    writers = outputs.create_writers(
        [p.name for p in outputs.PRODUCTS], pathlib.Path(sys.argv[1]),
        pathlib.PurePath("a"), info,
    )
    window = Window(0, 0, labels[:50, :50], ones[:50, :50], ones[:50, :50])
    writers.add_nuclei(Nuclei(window, info))
    writers.add_band(Band(0, labels, ones, ones.repeat(3, 2).astype(np.uint8)))
    print("half", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_leaves_no_file_with_a_name(tmp_path, plane):
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == "half\n"
        child.send_signal(signal.SIGKILL)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left
    hidden = [p.relative_to(tmp_path).parts[1].startswith(".nucseg-") for p in left]
    assert all(hidden)
    assert not outputs.is_finished(tmp_path, NAME, [])
    # The next run is not in its way, and cleans up.
    save(tmp_path, plane, NAMES)
    assert outputs.is_finished(tmp_path, NAME, NAMES)
    assert remove_leftovers(tmp_path) == 0
    assert remove_leftovers(tmp_path, older_than=time.time() - 1e9) == 0
    assert remove_leftovers(tmp_path, older_than=-60) >= len(NAMES) - 2
    names = [
        name for _, folders, names in os.walk(tmp_path) for name in names + folders
    ]
    assert not [name for name in names if name.startswith(".nucseg-")]
    assert outputs.is_finished(tmp_path, NAME, NAMES)
