"""Ten thousand files, some of them bad: each is done or listed, memory stays flat."""

import csv
import pathlib
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest

from nucseg_jax.data.images import read_image
from nucseg_jax.data.preprocessing import to_uint8

ROOT = pathlib.Path(__file__).parents[1]
NUM_FILES, EVERY_BAD, SIDE = 10_000, 100, 96


def write_files(folder):
    """Crops of real images, in folders of 1,000; returns the names of the bad ones."""
    rng = np.random.default_rng(0)
    paths = sorted((ROOT / "experiments/sample_data/images").iterdir())
    images = [to_uint8(read_image(path)) for path in paths]
    bad = []
    for number in range(NUM_FILES):
        image = images[number % len(images)]
        top, left = (rng.integers(0, n - SIDE + 1) for n in image.shape[:2])
        name = f"{number // 1000}/{number:05}.png"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        crop = image[top : top + SIDE, left : left + SIDE]
        PIL.Image.fromarray(crop).save(path, compress_level=1)
        if number % EVERY_BAD == EVERY_BAD // 2:
            spoil(path, rng)
            bad.append(name)
    return bad


def spoil(path, rng):
    """Cuts a file, empties it, or writes something else into it."""
    whole = path.read_bytes()
    path.write_bytes(
        [whole[: len(whole) // 2], b"", rng.bytes(5000), b"<html>not found"][
            rng.integers(4)
        ]
    )


def resident_mib(pid):
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    (told,) = [line for line in lines if line.startswith("VmRSS")]
    return int(told.split()[1]) >> 10


def watch_memory(process, summaries):
    """Samples MiB beside the number of finished images, until the process ends."""
    samples = []
    while process.poll() is None:
        try:
            mib = resident_mib(process.pid)
        except (OSError, ValueError):  # It has just ended.
            break
        samples.append((sum(1 for _ in summaries.rglob("*.json")), mib))
        time.sleep(2)
    return samples


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_ten_thousand_files_with_bad_ones_among_them(tmp_path):
    bad = write_files(tmp_path / "in")
    output = tmp_path / "out"
    command = [sys.executable, "-m", "experiments.predict"]
    command += [f"--input={tmp_path / 'in'}", f"--output={output}", "--mode=fast"]
    start = time.monotonic()
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        samples = watch_memory(process, output / "tables")
    assert process.wait() == 1
    told = (tmp_path / "log").read_text()
    assert f"{NUM_FILES - len(bad)} of {NUM_FILES} files" in told, told[-2000:]
    assert [row["image"] for row in table(output / "failed.csv")] == bad
    assert len(table(output / "summary.csv")) == NUM_FILES - len(bad)
    assert len(list((output / "labels").rglob("*.tif"))) == NUM_FILES - len(bad)
    warm = [mib for done, mib in samples if NUM_FILES // 10 < done < NUM_FILES // 5]
    last = [mib for done, mib in samples if done > NUM_FILES * 9 // 10]
    print(f"{warm[0]} MiB after {NUM_FILES // 10} files, {last[-1]} MiB at the end, ")
    print(f"{time.monotonic() - start:.0f} s")
    assert max(last) < warm[0] + 50
