"""Batches from loading processes to the training process, by files in memory.

Memory that two processes share is new to both, page by page, and touching a page for
the first time costs more than copying it. A file is written and read without. A file
whose batch was read is used again: the pages of a new one would have to be made, too.
"""

from __future__ import annotations

import errno
import os
import pathlib
import pickle
import shutil
import tempfile
from typing import Any

# Linux has it everywhere; elsewhere the system keeps such short-lived files in memory.
_MEMORY = pathlib.Path("/dev/shm")
# Files of one process, at most: one is written, one read, and three wait between.
_MOST_FILES = 5
# What a file's name ends in once its batch was read.
_FREE = ".free"
_ADVICE = (
    "lower --num_workers (0 needs none), or give the container more, as by "
    "docker run --shm-size=1g"
)


class LoaderError(ValueError):
    """Loading processes cannot work, or died; the message tells what to do."""


def check_room(batch_bytes: int, num_workers: int) -> None:
    """Refuses more loading processes than there is room for.

    They would fail in the midst of training.

    Raises:
      LoaderError: Tells how much there is and how much is wanted.
    """
    wanted = num_workers * _MOST_FILES * batch_bytes / 2**20
    free = shutil.disk_usage(_parent()).free / 2**20
    if wanted > free:
        raise LoaderError(
            f"{_parent()} has {free:.0f} MiB free, {num_workers} loading processes "
            f"need {wanted:.0f}: {_ADVICE}"
        )


def create_folder() -> tempfile.TemporaryDirectory:
    """Creates a folder for `Send`, named after this process; clean it up after use."""
    return tempfile.TemporaryDirectory(
        prefix=f"nucseg-{os.getpid()}-", dir=_parent(), ignore_cleanup_errors=True
    )


def _parent() -> str:
    return str(_MEMORY) if os.access(_MEMORY, os.W_OK) else tempfile.gettempdir()


class Send:
    """Writes batches to files; one in each loading process."""

    def __init__(self, folder: str):
        self._folder = folder
        self._paths: list[str] = []

    def __call__(self, batch: Any) -> str:
        """Returns the path of a file that holds the batch, for `receive`.

        Raises:
          LoaderError: If there is no room for it.
        """
        try:
            path = self._take_file()
            # What is there is overwritten, not cut off: that would give up its pages.
            with open(path, "r+b") as file:
                pickle.dump(batch, file, protocol=5)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            place = os.path.dirname(self._folder)
            raise LoaderError(f"{place} is full: {_ADVICE}") from error
        return path

    def _take_file(self) -> str:
        for path in self._paths:
            if os.path.exists(path + _FREE):
                os.rename(path + _FREE, path)
                return path
        path = os.path.join(self._folder, f"{os.getpid()}-{len(self._paths)}")
        open(path, "xb").close()
        self._paths.append(path)
        return path


def receive(path: str) -> Any:
    """Reads a batch that was sent, and gives its file back."""
    with open(path, "rb") as file:
        batch = pickle.load(file)
    os.rename(path, path + _FREE)
    return batch
