"""Images too large for memory, in processes of their own: nuclei, memory, time."""

import json
import pathlib
import subprocess
import sys

import pytest
import tifffile

HERE = pathlib.Path(__file__).parent


def segment(folder, *, side, tile):
    command = [sys.executable, str(HERE / "large_image.py"), folder, side, tile]
    result = subprocess.run(
        list(map(str, command)),
        cwd=HERE.parents[1],
        env={"PYTHONPATH": str(HERE.parents[1]), "JAX_PLATFORMS": "cpu", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def check_labels(folder, side, nuclei):
    """Discs lie on a grid of 50 pixels that begins and ends on the image's border."""
    assert nuclei == (side // 50 + 1) ** 2
    with tifffile.TiffFile(folder / "out/labels/large.tif") as tiff:
        assert tiff.pages[0].shape == (side, side)


def test_nuclei_of_many_tiles_are_counted_once(tmp_path):
    told = segment(tmp_path, side=1000, tile=384)
    check_labels(tmp_path, 1000, told["nuclei"])


@pytest.mark.slow
def test_400_megapixels_fit_into_two_gibibytes(tmp_path):
    told = segment(tmp_path, side=20_000, tile=1536)
    print(told)
    check_labels(tmp_path, 20_000, told["nuclei"])
    assert told["peak_mib"] <= 2048
