"""What is installed, locked, packed and documented follows from pyproject.toml."""

import glob
import pathlib
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import nucseg_jax

ROOT = pathlib.Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCKS = {"": "dev", "-cuda12": "cuda12", "-cuda13": "cuda13"}


def locked_versions(text: str) -> dict[str, list[str]]:
    """Returns the versions of each package in a lock file: one for each marker."""
    versions: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE):
        versions.setdefault(canonicalize_name(name), []).append(version)
    return versions


@pytest.mark.parametrize("suffix", LOCKS)
def test_locks_hold_what_pyproject_allows(suffix):
    text = (ROOT / f"requirements{suffix}.lock").read_text(encoding="utf-8")
    versions = locked_versions(text)
    named = EXTRAS["dev"] + EXTRAS["dask"] + EXTRAS[LOCKS[suffix]]
    for line in PROJECT["dependencies"] + named:
        requirement = Requirement(line)
        locked = versions.get(canonicalize_name(requirement.name), [])
        assert locked, f"make lock UPGRADE=: {requirement.name} is not locked"
        for version in locked:
            assert requirement.specifier.contains(version), (
                f"make lock UPGRADE=: {version} is not {requirement}"
            )


def test_oldest_python_is_the_same_everywhere():
    oldest = PROJECT["requires-python"].removeprefix(">=")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"PYTHONS ?= python{oldest} " in makefile
    assert f"OLDEST ?= python{oldest}\n" in makefile
    assert f"--python-version {oldest} " in makefile  # What the locks are made for.
    assert f"Python {oldest} or later" in (ROOT / "README.md").read_text("utf-8")
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"


def test_every_dependency_has_a_lower_bound_and_a_purpose():
    notes = (ROOT / "BUILD_NOTES.md").read_text(encoding="utf-8")
    table = notes.partition("## Dependencies")[2].partition("\n## ")[0]
    listed = re.findall(r"[\w.-]+", table)
    for line in PROJECT["dependencies"]:
        requirement = Requirement(line)
        assert re.search(r"[>=]=", str(requirement.specifier)), line
        assert requirement.name in listed, f"BUILD_NOTES.md lacks {requirement.name}"


@pytest.mark.parametrize("package", ["nucseg_jax", "experiments"])
def test_wheels_hold_every_file(package):
    folder = ROOT / package
    files = {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"][package]
    packed = {
        file
        for pattern in patterns
        for file in glob.glob(pattern, root_dir=folder, recursive=True)
    }
    assert files <= packed


def test_version_is_one():
    assert nucseg_jax.__version__ == PROJECT["version"]
