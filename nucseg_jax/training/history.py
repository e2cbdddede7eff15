"""The record of a run: one row an epoch, as CSV and as TensorBoard events."""

from __future__ import annotations

import csv
import os
import pathlib
from collections.abc import Mapping
from itertools import chain

import tensorboardX

from nucseg_jax.files import writing_text

Row = dict[str, float]


class History:
    """Rows of `workdir/history.csv`, mirrored as TensorBoard events.

    The file is written anew with each row and replaced as a whole, so that it is
    complete at any moment.
    """

    def __init__(self, workdir: str | pathlib.Path, *, num_epochs_done: int = 0):
        """Opens the record; rows of epochs that will be done again are dropped."""
        self._path = pathlib.Path(workdir) / "history.csv"
        self.rows = [
            r for r in read_history(self._path) if r["epoch"] <= num_epochs_done
        ]
        self._events = tensorboardX.SummaryWriter(
            str(pathlib.Path(workdir) / "tensorboard")
        )

    def append(self, row: Mapping[str, float]) -> None:
        """Adds the row of an epoch, counted from 1; `row["step"]` is TensorBoard's."""
        self.rows.append(dict(row))
        _write(self._path, self.rows)
        for name, value in row.items():
            if name not in ("epoch", "step"):
                self._events.add_scalar(name, value, int(row["step"]))
        self._events.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._events.close()


def read_history(path: str | pathlib.Path) -> list[Row]:
    """Reads the rows of a history.csv; none if there is no such file."""
    if not os.path.isfile(path):
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [_parse(row) for row in csv.DictReader(file)]


def _parse(row: Mapping[str, str]) -> Row:
    """Reads whole numbers as such: the file stays the same when it is written again.

    A run that went on with a newer version may lack a column in its first rows.
    """
    return {k: int(v) if v.isdigit() else float(v) for k, v in row.items() if v}


def _write(path: pathlib.Path, rows: list[Row]) -> None:
    with writing_text(path) as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(chain(*rows))))
        writer.writeheader()
        writer.writerows(rows)
