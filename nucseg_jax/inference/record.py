"""What becomes of one file while its pictures are segmented, by whomever."""

from __future__ import annotations

import contextlib
import errno
import pathlib
from collections.abc import Collection, Iterator

from nucseg_jax.data.errors import ImageError
from nucseg_jax.inference.earlier_results import EarlierResults
from nucseg_jax.inference.jobs import Job, Outcome, take_stamp


class FileRecord:
    """Counts what is done of a file; a picture that fails leaves the others.

    record = FileRecord(job, earlier)
    with record.catching():
        ...  # Open the file.
        record.begin(stamp, names)
        for name in names:
            with record.catching():
                ...  # Segment one picture.
                record.add(name, num_nuclei)
    outcome = record.finish()
    """

    def __init__(self, job: Job, earlier: EarlierResults):
        """Starts with nothing done.

        Args:
          job: The file.
          earlier: What was in the output folder when the run began.
        """
        self._job, self._earlier = job, earlier
        self._stamp = ""
        self._finished: set[pathlib.PurePath] = set()
        self._num_nuclei = self._num_planes = self._num_skipped = 0
        self._num_elsewhere = self._num_retired = 0
        self._errors: list[str] = []

    @contextlib.contextmanager
    def catching(self) -> Iterator[None]:
        """Notes why a file, or one picture of it, cannot be finished, and goes on.

        Raises:
          OSError: If results cannot be written, but for the length of their names.
        """
        try:
            yield
        except ImageError as error:
            self._errors.append(str(error))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            reason = "its results' names would be too long; give it a shorter name"
            self._errors.append(f"{self._job.image}: {reason}")

    def begin(
        self, stamp: str, names: Collection[pathlib.PurePath], *, num_elsewhere: int = 0
    ) -> None:
        """Takes earlier results that the file does not give any more out of the tables.

        Args:
          stamp: Of the file, see `jobs.take_stamp`.
          names: Of the results of its pictures.
          num_elsewhere: Pictures that are left to another file.
        """
        self._stamp, self._num_elsewhere = stamp, num_elsewhere
        self._num_retired += self._earlier.retire(self._job, stamp, names)

    def add(self, name: pathlib.PurePath, num_nuclei: int) -> None:
        """Counts a picture that was segmented."""
        self._finished.add(name)
        self._num_planes += 1
        self._num_nuclei += num_nuclei

    def skip(self, name: pathlib.PurePath) -> None:
        """Counts a picture that was finished before."""
        self._finished.add(name)
        self._num_skipped += 1

    def finish(self) -> Outcome:
        """Tells what became of the file."""
        if self._errors:
            self._retire_changed()
        return Outcome(
            self._job,
            num_nuclei=self._num_nuclei,
            num_planes=self._num_planes,
            num_skipped=self._num_skipped,
            num_elsewhere=self._num_elsewhere,
            num_retired=self._num_retired,
            error=self._tell_errors(),
        )

    def _retire_changed(self) -> None:
        """Takes what was found in the file when it was another out of the tables."""
        with contextlib.suppress(ImageError):
            # Of a file that could not be opened, its parts are not known.
            stamp = self._stamp or take_stamp(self._job.image, [])
            self._num_retired += self._earlier.retire_changed(
                self._job, stamp, self._finished
            )

    def _tell_errors(self) -> str:
        """The first of them: in a stack, most pages fail alike."""
        first = self._errors[0] if self._errors else ""
        more = len(self._errors) - 1
        return f"{first}; and {more} more of its images" if more > 0 else first
