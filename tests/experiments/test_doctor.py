"""The doctor passes a sound set-up and names what is broken."""

import importlib.metadata
import pathlib
import re
import sys
import tomllib
import types

import pytest

from experiments import device, doctor

ROOT = pathlib.Path(doctor.__file__).parents[1]


def test_a_sound_setup_works(capsys):
    assert doctor.main() == 0
    text = capsys.readouterr().out
    assert "set-up: works" in text
    assert "BROKEN" not in text
    assert f"jax{'':<21}{importlib.metadata.version('jax')}" in text
    assert "device: " in text


def test_every_package_that_the_project_uses_is_looked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.match(r"[\w.-]+", line)[0] for line in project["dependencies"]}
    # What others need, and what `check_device` tells of.
    others = {"fonttools", "msgpack", "protobuf", "pygments", "zipp"}
    assert {*doctor._PACKAGES, "onednn-cpu-gomp"} == wanted - others | {"jaxlib"}


def diagnose(capsys):
    """Status, and the problems that are printed."""
    status = doctor.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == ("set-up: broken, see above" if status else "set-up: works")
    return status, [line for line in lines if line.startswith("BROKEN: ")]


def set_versions(monkeypatch, **versions):
    """Changes what some packages say of their version; empty is missing."""
    real = importlib.metadata.version

    def version(name):
        value = versions.get(name.replace("-", "_"), None)
        if value == "":
            raise importlib.metadata.PackageNotFoundError(name)
        return value or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_two_versions_of_opencv_are_named_with_their_cure(monkeypatch, capsys):
    set_versions(monkeypatch, opencv_python="4.12.0", opencv_python_headless="5.0.0")
    status, (problem,) = diagnose(capsys)
    assert status == 1
    assert "opencv-python and opencv-python-headless differ" in problem
    assert "opencv-python==4.12.0 opencv-python-headless==5.0.0" in problem


@pytest.mark.parametrize("wheel", ["opencv_python", "opencv_python_headless"])
def test_one_opencv_alone_is_named(monkeypatch, capsys, wheel):
    set_versions(monkeypatch, **{wheel: ""})
    status, problems = diagnose(capsys)
    assert status == 1
    assert len(problems) == 2
    assert f"{wheel.replace('_', '-')} is not installed" in problems[0]
    assert "differ" in problems[1]


def test_a_missing_package_is_named(monkeypatch, capsys):
    set_versions(monkeypatch, tifffile="")
    status, (problem,) = diagnose(capsys)
    assert status == 1
    assert problem == "BROKEN: tifffile is not installed; run make setup"


# What uninstalling one of the two wheels leaves: no module, or a hollow one.
@pytest.mark.parametrize("left", [None, types.ModuleType("cv2")], ids=["no", "hollow"])
def test_a_broken_cv2_is_named_with_its_cure(monkeypatch, capsys, left):
    monkeypatch.setitem(sys.modules, "cv2", left)
    status, (problem,) = diagnose(capsys)
    assert status == 1
    assert "cv2 cannot be used" in problem
    assert "pip install --force-reinstall --no-deps opencv-python==" in problem


def test_a_jax_that_cannot_be_imported_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jax.numpy", None)
    status, (problem,) = diagnose(capsys)
    assert status == 1
    assert "JAX cannot use its device" in problem


def test_a_device_that_fails_is_named(monkeypatch, capsys):
    def fail():
        raise RuntimeError("driver too old")

    monkeypatch.setattr(device, "describe_device", fail)
    status, (problem,) = diagnose(capsys)
    assert (status, "driver too old" in problem) == (1, True)


@pytest.mark.parametrize(
    "flags, best",
    [
        ("sse4_2 avx2 avx512f avx512_bf16 amx_tile", "AMX"),
        ("avx2 avx512f avx512_bf16", "AVX-512 with bfloat16"),
        ("avx2 avx512f", "AVX-512"),
        ("sse4_2 avx2", "AVX2"),
        ("sse4_2", ""),
    ],
)
def test_a_machine_is_described_by_its_best_instructions(monkeypatch, flags, best):
    monkeypatch.setattr(device, "_cpuinfo", lambda: {"flags": flags})
    assert device.describe_machine()["instructions"] == best
