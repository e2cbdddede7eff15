"""Results that an output folder holds of earlier runs, and which are out of date.

A file may have got another name, among the results too, or other contents. What was
found in it as it was then must not be counted beside what is found in it now.
"""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
from collections.abc import Collection
from typing import NamedTuple

from nucseg_jax.inference.jobs import Job, resolve_folder
from nucseg_jax.inference.outputs import summaries


class _Result(NamedTuple):
    path: pathlib.Path
    name: pathlib.PurePath
    source: pathlib.Path
    stamp: str


class EarlierResults:
    """The summaries that were in an output folder when a run began.

    Its methods may run in several threads, each for files of its own.
    """

    def __init__(self, output: pathlib.Path):
        """Reads the summaries; damaged ones are left to those who need them."""
        self._output = output
        self._by_source = collections.defaultdict[pathlib.Path, list[_Result]](list)
        self._by_stamp = collections.defaultdict[str, list[_Result]](list)
        for path in summaries.summary_paths(output):
            with contextlib.suppress(summaries.SummaryError, FileNotFoundError):
                summary = summaries.read_summary(path)
                source, stamp = pathlib.Path(summary["source"]), summary["stamp"]
                name = summaries.result_name(output, path)
                result = _Result(path, name, source, stamp)
                self._by_source[resolve_folder(source)].append(result)
                self._by_stamp[stamp].append(result)

    def retire(self, job: Job, stamp: str, names: Collection[pathlib.PurePath]) -> int:
        """Takes results of a file that it does not give any more out of the tables.

        These are results of the file, or of a vanished one of the same stamp, which is
        this file under the name it had then. Their labels and pictures stay.

        Args:
          job: The file.
          stamp: Of the file, see `jobs.take_stamp`.
          names: Of its results.

        Returns:
          How many there were.
        """
        own = self._by_source.get(resolve_folder(job.image), [])
        renamed = [r for r in self._by_stamp.get(stamp, []) if _is_gone(r, job)]
        return _remove({r for r in [*own, *renamed] if r.name not in names})

    def retire_changed(
        self, job: Job, stamp: str, new: Collection[pathlib.PurePath]
    ) -> int:
        """Takes results of a file that cannot be read any more out of the tables.

        Args:
          job: The file.
          stamp: Of the file as it is; what was found in it when it was the same stays.
          new: Names of results that were replaced since the run began.

        Returns:
          How many there were.
        """
        own = self._by_source.get(resolve_folder(job.image), [])
        return _remove({r for r in own if r.stamp != stamp and r.name not in new})

    def remove(self, names: Collection[pathlib.PurePath]) -> None:
        """Takes results, also of this run, out of the tables."""
        for name in names:
            summaries.summary_path(self._output, name).unlink(missing_ok=True)


def _is_gone(result: _Result, job: Job) -> bool:
    """Tells whether an image is neither where it was nor, all having moved, beside."""
    root = job.image.parents[len(job.relative.parts) - 1]
    moved = root / result.name.parent / result.source.name
    return not os.path.lexists(result.source) and not os.path.lexists(moved)


def _remove(results: set[_Result]) -> int:
    """Removes summaries; returns how many were there still."""
    there = [result for result in results if result.path.exists()]
    for result in there:
        result.path.unlink(missing_ok=True)
    return len(there)
