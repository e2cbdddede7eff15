"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import json
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Iterator
from typing import Any, TextIO, TypedDict

_TEMPORARY = ".nucseg-*.tmp"
DAY = 24 * 60 * 60.0


class _Text(TypedDict):
    encoding: str
    errors: str


# How text files are opened. A file's name need not be valid UTF-8: its bytes are kept.
TEXT: _Text = {"encoding": "utf-8", "errors": "surrogateescape"}


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary file or folder to write; at the end it takes the name `path`.

    Folders are created. After an error nothing is left behind, and a file that was
    there before stays.

    Raises:
      OSError: If the file cannot be written; names it.
    """
    temporary = temporary_path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            remove(temporary)


@contextlib.contextmanager
def writing_text(path: pathlib.Path) -> Iterator[TextIO]:
    """Opens a text file to write, which appears whole; as `replacing` does.

    Ends of lines are as they are written, on every system.

    Raises:
      OSError: If the file cannot be written; names it.
    """
    with replacing(path) as temporary, open(temporary, "w", newline="", **TEXT) as file:
        yield file


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value that JSON knows, for people to read; as `replacing` does.

    Raises:
      OSError: If the file cannot be written; names it.
    """
    with writing_text(path) as file:
        file.write(json.dumps(value, indent=2) + "\n")


def make_folder(folder: pathlib.Path) -> None:
    """Makes a folder and tries to write in it, before hours of work shall end there.

    Raises:
      OSError: If it cannot be made or written; names it.
    """
    if folder.exists() and not folder.is_dir():
        raise OSError(f"{folder}: is not a folder; name another one")
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        trial = temporary_path(folder / "trial")
        trial.touch()
        trial.unlink()


def temporary_path(path: pathlib.Path) -> pathlib.Path:
    """Names a hidden neighbour of `path`, another one each time.

    Containers that share a folder often share the number of their process, too. The
    length does not grow with that of the name, which may be at the limit already.
    """
    return path.with_name(f".nucseg-{uuid.uuid4().hex}.tmp")


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Lets every OSError tell which file could not be written."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise OSError(f"{path}: {error}") from error
        reason = error.strerror or os.strerror(error.errno)
        raise OSError(error.errno, reason, str(path)) from error


def remove(path: pathlib.Path) -> None:
    """Removes a file, or a folder with all in it, if there is one.

    A file that vanishes meanwhile is no error: where one write has failed, another
    thread of the same library may be clearing up after its own.
    """
    while path.is_dir() and not path.is_symlink():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)
    path.unlink(missing_ok=True)


def remove_leftovers(folder: pathlib.Path, *, older_than: float = DAY) -> int:
    """Removes temporary files that killed processes left anywhere below a folder.

    Args:
      folder: The output folder.
      older_than: Seconds since the last change, of a folder that of the latest file
        in it; younger ones may be in use.

    Returns:
      How many were removed.
    """
    latest = time.time() - older_than
    count = 0
    # os.walk passes over what other processes rename or remove meanwhile.
    for parent, folders, names in os.walk(folder):
        temporary = fnmatch.filter(folders + names, _TEMPORARY)
        folders[:] = set(folders) - set(temporary)
        for path in (pathlib.Path(parent, name) for name in temporary):
            # Gone meanwhile, or another user's in a folder that is shared.
            with contextlib.suppress(FileNotFoundError, PermissionError):
                if _is_older(path, latest):
                    remove(path)
                    count += 1
    return count


def _is_older(path: pathlib.Path, latest: float) -> bool:
    inside = path.rglob("*") if path.is_dir() else ()
    parts = itertools.chain([path], inside)
    return all(part.lstat().st_mtime < latest for part in parts)
