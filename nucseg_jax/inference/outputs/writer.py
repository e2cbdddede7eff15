"""What writers have in common: they are fed, then finish or leave nothing behind."""

from __future__ import annotations

import abc
import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence

from nucseg_jax import files
from nucseg_jax.inference.outputs.nuclei import Nuclei
from nucseg_jax.inference.streams import Band, PlaneInfo


class Writer(contextlib.AbstractContextManager):
    """Writes one product of one plane.

    As a context manager it finishes, or after an error aborts. Every OSError names the
    file that could not be written.

    Attributes:
      path: The file, or folder, that is there once the writer has finished.
      info: Of the plane.
      needs_bands: Whether the product is made of bands.
    """

    needs_bands = False

    def __init__(self, path: pathlib.Path, info: PlaneInfo):
        """Starts a file.

        Args:
          path: What it will be called; folders are created.
          info: Of the plane.

        Raises:
          OSError: If it cannot be created.
        """
        self.path, self.info = path, info
        self._temporary = files.temporary_path(path)
        self._next_row = 0
        # What is closed when the writer aborts.
        self._open_files = contextlib.ExitStack()
        with files.naming(path), self._aborting():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open()

    def add_nuclei(self, nuclei: Nuclei) -> None:
        """Takes the nuclei of a window."""
        with files.naming(self.path):
            self._add_nuclei(nuclei)

    def add_band(self, band: Band) -> None:
        """Takes the next rows.

        Raises:
          ValueError: If they are not the next ones.
        """
        if band.top != self._next_row:
            raise ValueError(
                f"{self.path}: expected row {self._next_row}, got row {band.top}"
            )
        with files.naming(self.path):
            self._add_band(band)
        self._next_row += len(band.labels)

    def finish(self) -> None:
        """Completes the file and gives it its name."""
        with self._aborting():
            self.complete()
            self.publish()

    def complete(self) -> None:
        """Writes what is left, under a temporary name, and reads back what matters.

        Raises:
          ValueError: If rows are missing.
        """
        if self.needs_bands and self._next_row != self.info.height:
            raise ValueError(
                f"{self.path}: got {self._next_row} of {self.info.height} rows"
            )
        with files.naming(self.path):
            self._complete()

    def publish(self) -> None:
        """Gives the complete file its name, in place of an older one."""
        with files.naming(self.path):
            if self._temporary.is_dir() and self.path.is_dir():
                files.remove(self.path)
            os.replace(self._temporary, self.path)

    def abort(self) -> None:
        """Leaves nothing behind; an older file stays."""
        # What stood in the way of writing may stand in the way of closing, too.
        with contextlib.suppress(OSError):
            self._open_files.close()
        with files.naming(self.path):
            files.remove(self._temporary)

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        if exc_type is None:
            self.finish()
        else:
            self.abort()

    @contextlib.contextmanager
    def _aborting(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.abort()
            raise

    def _open(self) -> None:
        """Starts the temporary file; what it opens goes to `self._open_files`."""

    def _add_nuclei(self, nuclei: Nuclei) -> None:
        """Takes nuclei; most writers need either these or bands."""

    def _add_band(self, band: Band) -> None:
        """Takes a band."""

    @abc.abstractmethod
    def _complete(self) -> None:
        """Completes the temporary file and closes it."""


class WriterGroup(contextlib.AbstractContextManager):
    """Several writers as one: the last file of a plane is there once all others are."""

    def __init__(self, writers: Sequence[Writer]):
        self.writers = tuple(writers)

    def __iter__(self) -> Iterator[Writer]:
        return iter(self.writers)

    def add_nuclei(self, nuclei: Nuclei) -> None:
        """Hands the nuclei of a window to every writer."""
        for writer in self.writers:
            writer.add_nuclei(nuclei)

    def add_band(self, band: Band) -> None:
        """Hands the next rows to every writer."""
        for writer in self.writers:
            writer.add_band(band)

    def finish(self) -> None:
        """Completes all files, then names them in order; after an error, aborts."""
        try:
            for writer in self.writers:
                writer.complete()
            # The last one says that the plane is done: it must not while others change.
            files.remove(self.writers[-1].path)
            for writer in self.writers:
                writer.publish()
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Leaves nothing behind of what has no name yet."""
        with contextlib.ExitStack() as stack:
            for writer in self.writers:
                stack.callback(writer.abort)

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        if exc_type is None:
            self.finish()
        else:
            self.abort()
