import os
import subprocess
import sys

import pytest

from experiments import large_pages


def started(monkeypatch, *, argv, variable=None, system="always [madvise] never"):
    """What `restart_with_large_pages` would start: arguments and the variable."""
    calls = []
    monkeypatch.setattr(sys, "orig_argv", argv)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if variable is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", variable)
    monkeypatch.setattr(os, "execve", lambda *args: calls.append(args))
    monkeypatch.setattr(large_pages, "_offered_on_request", lambda: "[mad" in system)
    large_pages.restart_with_large_pages()
    return calls


@pytest.mark.parametrize("variable", [None, ""])
def test_programs_start_again_with_the_same_arguments(monkeypatch, variable):
    argv = ["python3", "-m", "experiments.train", "--workdir=runs/a b", ""]
    [(program, arguments, environment)] = started(
        monkeypatch, argv=argv, variable=variable
    )
    assert program == sys.executable
    assert arguments == [sys.executable, *argv[1:]]
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"


@pytest.mark.parametrize(
    "change",
    [
        {"argv": ["python", "-m", "pytest"]},
        {"argv": ["python", "-c", "import experiments"]},
        {"argv": ["python"]},
        {"variable": "glibc.malloc.check=1"},
        {"variable": "glibc.malloc.hugetlb=1"},
        {"system": "[always] madvise never"},
        {"system": "always madvise [never]"},
    ],
    ids=str,
)
def test_nothing_else_is_started_again(monkeypatch, change):
    given = {"argv": ["python", "-m", "experiments.train"]} | change
    assert started(monkeypatch, **given) == []


def test_systems_without_such_pages_are_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(large_pages, "_SYSTEM", tmp_path / "missing")
    assert not large_pages._offered_on_request()


@pytest.mark.skipif(
    not large_pages._offered_on_request(), reason="large pages are not on request"
)
def test_a_program_really_runs_and_its_exit_code_is_kept():
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    command = [sys.executable, "-m", "experiments.merge", "--output=/no/such/folder"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert "no/such/folder" in result.stderr
