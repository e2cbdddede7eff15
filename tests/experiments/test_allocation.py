import os
import subprocess
import sys

import pytest

from experiments import allocation


def started(monkeypatch, *, argv, variable=None, platform="linux"):
    """What `restart_with_settings` would start: arguments and the variable."""
    calls = []
    monkeypatch.setattr(sys, "orig_argv", argv)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if variable is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", variable)
    monkeypatch.setattr(os, "execve", lambda *args: calls.append(args))
    allocation.restart_with_settings()
    return calls


@pytest.mark.parametrize("variable", [None, ""])
def test_programs_start_again_with_the_same_arguments(monkeypatch, variable):
    argv = ["python3", "-m", "experiments.train", "--workdir=runs/a b", ""]
    [(program, arguments, environment)] = started(
        monkeypatch, argv=argv, variable=variable
    )
    assert program == sys.executable
    assert arguments == [sys.executable, *argv[1:]]
    assert environment["GLIBC_TUNABLES"] == allocation.choose_settings()


@pytest.mark.parametrize(
    "change",
    [
        {"argv": ["python", "-m", "pytest"]},
        {"argv": ["python", "-c", "import experiments"]},
        {"argv": ["python"]},
        {"variable": "glibc.malloc.check=1"},
        {"variable": "glibc.malloc.hugetlb=1"},
        {"platform": "darwin"},
    ],
    ids=str,
)
def test_nothing_else_is_started_again(monkeypatch, change):
    given = {"argv": ["python", "-m", "experiments.train"]} | change
    assert started(monkeypatch, **given) == []


@pytest.mark.parametrize(
    "system, expected",
    [
        ("always [madvise] never", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        ("[always] madvise never", "glibc.malloc.arena_max=2"),
        ("always madvise [never]", "glibc.malloc.arena_max=2"),
        (None, "glibc.malloc.arena_max=2"),
    ],
)
def test_large_pages_are_asked_for_where_they_are_given_on_request(
    monkeypatch, tmp_path, system, expected
):
    path = tmp_path / "enabled"
    if system:
        path.write_text(system)
    monkeypatch.setattr(allocation, "_SYSTEM", path)
    assert allocation.choose_settings() == expected


@pytest.mark.skipif(sys.platform != "linux", reason="there is no glibc")
def test_a_program_really_runs_and_its_exit_code_is_kept():
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    command = [sys.executable, "-m", "experiments.merge", "--output=/no/such/folder"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert "no/such/folder" in result.stderr
