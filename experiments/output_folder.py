"""An output folder of predictions: its settings, its failures, its merged tables."""

from __future__ import annotations

import csv
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from nucseg_jax.files import TEXT, replacing, write_json
from nucseg_jax.inference.jobs import Outcome
from nucseg_jax.inference.outputs import merge_tables
from nucseg_jax.inference.outputs.page import write_report
from nucseg_jax.inference.outputs.summaries import SETTINGS


def check_settings(folder: pathlib.Path, settings: dict[str, Any]) -> None:
    """Keeps the settings in the folder, and refuses to mix results of two.

    Raises:
      ValueError: If the folder holds results of other settings.
    """
    path = folder / SETTINGS
    if not path.exists():
        write_json(path, settings)
        return
    before = read_settings(folder)
    differing = [name for name in settings if before.get(name) != settings[name]]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{folder} holds results with {name}={before.get(name)!r}, now it is "
            f"{settings[name]!r}: give another --output, or delete that folder"
        )


def read_settings(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the settings of the results in a folder.

    Raises:
      ValueError: If the folder holds no results, or damaged settings.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise ValueError(f"{folder}: holds no results of experiments.predict")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: is damaged ({error}); delete it") from error


def write_failures(
    folder: pathlib.Path, failed: Sequence[Outcome], num_shards: int, shard_index: int
) -> None:
    """Writes the files that could not be finished; none leave no file behind.

    What runs with another number of shards have left is out of date.
    """
    shard = f"_{shard_index}_of_{num_shards}" if num_shards > 1 else ""
    path = folder / f"failed{shard}.csv"
    current = {path, *folder.glob(f"failed_*_of_{num_shards}.csv")}
    for older in set(folder.glob("failed*.csv")) - current:
        older.unlink(missing_ok=True)
    if not failed:
        path.unlink(missing_ok=True)
        return
    with (
        replacing(path) as temporary,
        open(temporary, "w", newline="", **TEXT) as file,
    ):
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["image", "error"])
        rows.writerows([str(o.job.relative), o.error] for o in failed)


def read_failures(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yields image and error of all files that could not be finished."""
    for path in sorted(folder.glob("failed*.csv")):
        with open(path, newline="", **TEXT) as file:
            for row in csv.DictReader(file):
                yield row["image"], row["error"]


def merge(folder: pathlib.Path) -> int:
    """Writes nuclei.csv, summary.csv and report.html over all finished images.

    Returns:
      The number of images.
    """
    count = merge_tables(folder)
    write_report(
        folder,
        title="Nuclei",
        settings=read_settings(folder),
        failures=list(read_failures(folder)),
    )
    return count
