"""What becomes of one file while its pictures are segmented, by whomever."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import pathlib
from collections.abc import Callable, Collection, Iterator

from nucseg_jax.data.errors import ImageError
from nucseg_jax.inference.earlier_results import EarlierResults
from nucseg_jax.inference.jobs import Job, take_stamp


@dataclasses.dataclass
class Outcome:
    """What became of one file.

    Attributes:
      job: Which.
      num_nuclei: Newly found, in all its planes.
      num_planes: Newly segmented.
      num_skipped: Planes that were finished before.
      num_elsewhere: Planes that are left to another file, in which they begin.
      num_retired: Earlier results, under names or of contents that the file had then.
      error: Why not all of it could be finished; "" if it was.
    """

    job: Job
    num_nuclei: int = 0
    num_planes: int = 0
    num_skipped: int = 0
    num_elsewhere: int = 0
    num_retired: int = 0
    error: str = ""


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
        record.check(take_stamp)
    outcome = record.finish()
    """

    def __init__(self, job: Job, earlier: EarlierResults):
        """Starts with nothing done.

        Args:
          job: The file.
          earlier: What was in the output folder when the run began.
        """
        self._outcome, self._earlier = Outcome(job), earlier
        self._stamp = ""
        self._new: set[pathlib.PurePath] = set()
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
            self._errors.append(f"{self._outcome.job.image}: {reason}")

    def begin(
        self, stamp: str, names: Collection[pathlib.PurePath], *, num_elsewhere: int = 0
    ) -> None:
        """Takes earlier results that the file does not give any more out of the tables.

        Args:
          stamp: Of the file, see `jobs.take_stamp`.
          names: Of the results of its pictures.
          num_elsewhere: Pictures that are left to another file.
        """
        self._stamp, self._outcome.num_elsewhere = stamp, num_elsewhere
        retired = self._earlier.retire(self._outcome.job, stamp, names)
        self._outcome.num_retired += retired

    def add(self, name: pathlib.PurePath, num_nuclei: int) -> None:
        """Counts a picture that was segmented."""
        self._new.add(name)
        self._outcome.num_planes += 1
        self._outcome.num_nuclei += num_nuclei

    def skip(self) -> None:
        """Counts a picture that was finished before."""
        self._outcome.num_skipped += 1

    def check(self, take: Callable[[], str]) -> None:
        """Takes what was found while the file changed out of the tables again.

        A microscope may have been writing it still.

        Args:
          take: Takes the stamp of the file as it is now; not asked where nothing is
            new, since that reads the file.

        Raises:
          ImageError: If it is not what it was at the beginning.
        """
        if not self._new or (stamp := take()) == self._stamp:
            return
        self._earlier.remove(self._new)
        self._new.clear()
        self._stamp = stamp
        self._outcome.num_planes = self._outcome.num_nuclei = 0
        raise ImageError(
            f"{self._outcome.job.image}: changed while it was read; run again"
        )

    def finish(self) -> Outcome:
        """Tells what became of the file."""
        if self._errors:
            self._retire_changed()
            self._outcome.error = self._tell_errors()
        return self._outcome

    def _retire_changed(self) -> None:
        """Takes what was found in the file when it was another out of the tables."""
        with contextlib.suppress(ImageError):
            # Of a file that could not be opened, its parts are not known.
            job = self._outcome.job
            stamp = self._stamp or take_stamp(job.image, [])
            retired = self._earlier.retire_changed(job, stamp, self._new)
            self._outcome.num_retired += retired

    def _tell_errors(self) -> str:
        """The first of them: in a stack, most pages fail alike."""
        first, *more = self._errors
        return f"{first}; and {len(more)} more of its images" if more else first
