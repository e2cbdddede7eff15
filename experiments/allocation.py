"""Settings of glibc's memory allocation, which it reads when a program starts.

Large pages, where Linux gives them on request: XLA asks the system for its buffers
anew in every step, and clearing them in pages of 4 KiB takes up to a fifth of a
training step on CPU. Few arenas: by default each thread has one, and arrays that come
and go leave holes in all of them, 100 MiB and more with large images.
"""

from __future__ import annotations

import os
import pathlib
import sys

_VARIABLE = "GLIBC_TUNABLES"
_ARENAS, _LARGE_PAGES = "glibc.malloc.arena_max=2", "glibc.malloc.hugetlb=1"
_SYSTEM = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_settings() -> None:
    """Starts this program again with the settings, if it is one of this package's.

    Does nothing where there is no glibc to read them, and where the variable is set
    already, to these or to something else (empty counts as not set).
    """
    is_program = sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2].startswith(
        f"{__package__}."
    )
    if is_program and not os.environ.get(_VARIABLE) and sys.platform == "linux":
        environment = {**os.environ, _VARIABLE: choose_settings()}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def choose_settings() -> str:
    """The variable's value for this system."""
    return f"{_ARENAS}:{_LARGE_PAGES}" if _large_pages_on_request() else _ARENAS


def _large_pages_on_request() -> bool:
    """Whether they are given neither to all programs nor to none."""
    try:
        return "[madvise]" in _SYSTEM.read_text()
    except OSError:
        return False
