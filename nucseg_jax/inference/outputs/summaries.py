"""Finished images of an output folder, and the tables of all of them together."""

from __future__ import annotations

import contextlib
import csv
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from nucseg_jax.files import TEXT, writing_text

TABLES = "tables"
SUFFIX = ".json"
SETTINGS = "settings.json"
# What `summary.csv` takes over from summaries, after the image's name.
SUMMARY_COLUMNS = (
    "source",
    "height",
    "width",
    "channel",
    "pixel_size",
    "scale",
    "count",
    "density_per_megapixel",
    "density_per_mm2",
    "median_area",
    "unit",
    "seconds",
)
_NEEDED = ("name", "stamp", "outputs", "area_histogram")


class SummaryError(ValueError):
    """A file of an output folder is damaged or missing."""


def summary_path(folder: pathlib.Path, name: pathlib.PurePath) -> pathlib.Path:
    """Where the summary of an image lies; it is written last of its files."""
    return folder / TABLES / name.with_name(f"{name.name}{SUFFIX}")


def summary_paths(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists the summaries in an output folder, in the order of their files' names."""
    found = (folder / TABLES).rglob(f"*{SUFFIX}")
    # A folder of images may have such a name, too.
    return sorted(path for path in found if path.is_file())


def result_name(folder: pathlib.Path, path: pathlib.Path) -> pathlib.PurePath:
    """Tells the name that `summary_path` was given."""
    relative = path.relative_to(folder / TABLES)
    return relative.with_name(relative.name.removesuffix(SUFFIX))


def holds_results(folder: pathlib.Path) -> bool:
    """Tells if a folder is the output folder of a run."""
    return (folder / SETTINGS).is_file() and (folder / TABLES).is_dir()


def is_finished(
    folder: pathlib.Path,
    name: pathlib.PurePath,
    save: Sequence[str],
    stamp: str = "",
    settings: str = "",
) -> bool:
    """Tells if all products in `save` of an image are there; see `find_outputs`."""
    found = find_outputs(folder, name, stamp, settings)
    return bool(found) and all(product in found for product in save)


def find_outputs(
    folder: pathlib.Path, name: pathlib.PurePath, stamp: str, settings: str = ""
) -> dict[str, str]:
    """Finds the products of an image that are there.

    Args:
      folder: The output folder.
      name: Of the image's results.
      stamp: Of the image's file; products of another one do not count.
      settings: Which they are, see `PlaneInfo`; nor do products of others.

    Returns:
      Product -> its file, relative to the output folder.
    """
    try:
        summary = read_summary(summary_path(folder, name))
    except (SummaryError, FileNotFoundError):
        return {}
    if summary["stamp"] != stamp or not _is_of(summary, settings):
        return {}
    return {p: f for p, f in summary["outputs"].items() if (folder / f).exists()}


def _is_of(summary: Mapping[str, Any], settings: str) -> bool:
    """Tells if an image was segmented with these settings, as far as both are known."""
    before = summary.get("settings", "")
    return not before or not settings or before == settings


def read_summary(path: pathlib.Path) -> dict[str, Any]:
    """Reads the summary of an image.

    Raises:
      FileNotFoundError: If there is none.
      SummaryError: If it is damaged.
    """
    try:
        summary = json.loads(path.read_text(**TEXT))
        missing = {*_NEEDED, *SUMMARY_COLUMNS} - {*summary}
        if missing:
            raise ValueError(f"lacks {missing}")
        return summary
    except (ValueError, TypeError) as error:
        raise SummaryError(
            f"{path}: is not the summary of an image; delete it and run again"
        ) from error


def read_summaries(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields the summaries of all finished images, in the order of their files' names.

    Raises:
      SummaryError: If one is damaged.
    """
    for path in summary_paths(folder):
        yield read_summary(path)


def merge_tables(folder: pathlib.Path, settings: str = "") -> int:
    """Writes `nuclei.csv` and `summary.csv` over all finished images.

    `nuclei.csv` has the columns of all images, empty where an image lacks one; it is
    left out where no image has a table. Only one row is in memory at a time. Safe to
    repeat, also while other processes finish images for the first time.

    Args:
      folder: The output folder.
      settings: Those of all its images, see `PlaneInfo`.

    Returns:
      The number of images.

    Raises:
      SummaryError: If a file is damaged or missing, or an image has other settings.
    """
    tables: list[_Table] = []
    count = 0
    with _csv_writer(folder / "summary.csv") as rows:
        rows.writerow(["image", *SUMMARY_COLUMNS])
        for summary in read_summaries(folder):
            if not _is_of(summary, settings):
                raise SummaryError(
                    f"{folder}: {summary['name']} was segmented with other settings "
                    f"than {SETTINGS} tells, by a run that was there at the same time: "
                    "run again"
                )
            count += 1
            rows.writerow([summary["name"], *map(summary.get, SUMMARY_COLUMNS)])
            if "table" in summary["outputs"]:
                path = folder / summary["outputs"]["table"]
                tables.append(_Table(summary["name"], path, summary["count"]))
    if tables:
        _merge_nuclei(tables, folder / "nuclei.csv")
    else:
        (folder / "nuclei.csv").unlink(missing_ok=True)
    return count


class _Table(NamedTuple):
    image: str
    path: pathlib.Path
    num_rows: int


def _merge_nuclei(tables: Sequence[_Table], path: pathlib.Path) -> None:
    columns = unite_columns(_read_header(table.path) for table in tables)
    with _csv_writer(path) as rows:
        rows.writerow(["image", *columns])
        for table in tables:
            for row in _read_rows(table):
                values = (row.get(column, "") for column in columns)
                rows.writerow([table.image, *values])


def unite_columns(headers: Iterable[Sequence[str]]) -> list[str]:
    """Unites columns; one that is new comes after its left neighbour."""
    united: list[str] = []
    for header in dict.fromkeys(map(tuple, headers)):
        place = 0
        for column in header:
            if column not in united:
                united.insert(place, column)
            place = united.index(column) + 1
    return united


def _read_header(path: pathlib.Path) -> list[str]:
    with _csv_reader(path) as lines:
        return next(lines)


def _read_rows(table: _Table) -> Iterator[dict[str, str]]:
    with _csv_reader(table.path) as lines:
        header, count = next(lines), 0
        for line in lines:
            yield dict(zip(header, line, strict=True))
            count += 1
        if count != table.num_rows:
            raise ValueError(f"{count} rows, and the summary tells of {table.num_rows}")


@contextlib.contextmanager
def _csv_reader(path: pathlib.Path) -> Iterator[Iterator[list[str]]]:
    """Gives the lines of an image's table."""
    try:
        with open(path, newline="", **TEXT) as file:
            yield csv.reader(file)
    except (FileNotFoundError, StopIteration, ValueError, csv.Error) as error:
        is_missing = isinstance(error, FileNotFoundError)
        what = "is missing" if is_missing else f"is damaged ({error or 'no header'})"
        raise SummaryError(
            f"{path}: {what}; delete the summary beside it and run again"
        ) from error


@contextlib.contextmanager
def _csv_writer(path: pathlib.Path) -> Iterator[Any]:
    """Gives a writer of rows, whose file appears whole."""
    with writing_text(path) as file:
        yield csv.writer(file, lineterminator="\n")
