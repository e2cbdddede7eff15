"""An output folder of predictions: its settings, its failures, its merged tables."""

from __future__ import annotations

import csv
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nucseg_jax.digests import digest_json
from nucseg_jax.files import TEXT, remove_leftovers, write_json, writing_text
from nucseg_jax.inference.outputs import FOLDERS, merge_tables
from nucseg_jax.inference.outputs.page import write_report
from nucseg_jax.inference.outputs.summaries import SETTINGS, TABLES, summary_paths
from nucseg_jax.inference.record import Outcome

# Of files that a run did not come to.
LEFT = "maybe not done, for --on_error=stop ended the run at the error before them"
_UNFINISHED = "has not come to its end; start it again"
_FILES = ("nuclei.csv", "summary.csv", "report.html", "failed.csv")
_FAILURES = re.compile(r"failed(_\d+_of_\d+)?\.csv")


def begin_run(
    folder: pathlib.Path,
    settings: dict[str, Any],
    num_jobs: int,
    num_shards: int = 1,
    shard_index: int = 0,
) -> str:
    """Makes a folder ready for a run.

    Args:
      folder: The output folder.
      settings: What results depend on.
      num_jobs: Files that the run is to do.
      num_shards: Of the run.
      shard_index: Which of them this is.

    Returns:
      Which settings these are, see `identify`.

    Raises:
      ValueError: As `check_settings`.
    """
    check_settings(folder, settings)
    remove_leftovers(folder)
    begin_shard(folder, num_jobs, num_shards, shard_index)
    return identify(settings)


def check_settings(folder: pathlib.Path, settings: dict[str, Any]) -> None:
    """Keeps the settings in the folder, and refuses to mix results of two.

    As long as no image is finished, the settings may change.

    Raises:
      ValueError: If the folder holds results of other settings, or files of others
        that results would replace.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is not a folder; give another --output")
    # Before the settings are read, which another shard may be writing.
    found = [name for name in (SETTINGS, *FOLDERS, *_FILES) if (folder / name).exists()]
    before = read_settings(folder) if (folder / SETTINGS).exists() else {}
    if "network" not in before and found:
        raise ValueError(
            f"{folder} holds {found[0]}, which is not of this program and would be "
            "replaced: give another --output"
        )
    # The same network may lie elsewhere now: its digest is another of the settings.
    names = [name for name in settings | before if name != "checkpoint"]
    differing = [name for name in names if before.get(name) != settings.get(name)]
    if before and differing and summary_paths(folder):
        # Thresholds and head follow from the network and its mode.
        causes = [name for name in ("network", "mode") if name in differing]
        (name, *_) = causes or differing
        name = "checkpoint" if name == "network" else name
        raise ValueError(
            f"{folder} holds results with {name}={_tell(before.get(name))}, now it is "
            f"{_tell(settings.get(name))}: give another --output, or delete that folder"
        )
    if differing:
        write_json(folder / SETTINGS, settings)
    # With it, this is an output folder also to a run that searches for images.
    (folder / TABLES).mkdir(exist_ok=True)


def check_unchanged(folder: pathlib.Path, settings: str) -> None:
    """Refuses to go on in a folder that another run has made its own.

    Before an image is finished there, two that start together may both find it empty.

    Args:
      folder: The output folder.
      settings: From `identify`.

    Raises:
      ValueError: If the folder's settings are others by now.
    """
    if identify(read_settings(folder)) != settings:
        raise ValueError(
            f"{folder}: another run has begun there, with other settings; give another "
            "--output"
        )


def identify(settings: Mapping[str, Any]) -> str:
    """Tells which settings these are: a digest, wherever the network lies."""
    which = {name: settings[name] for name in settings.keys() - {"checkpoint"}}
    return digest_json(which)[:16]


def _tell(value: Any) -> str:
    return "not given" if value is None else repr(value)


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
        raise ValueError(
            f"{path}: is damaged ({error}); give another --output, or delete that "
            "folder"
        ) from error


def begin_shard(
    folder: pathlib.Path, num_jobs: int, num_shards: int = 1, shard_index: int = 0
) -> None:
    """Notes that a run has begun, for those that find it killed.

    At its end, `write_failures` replaces the note.

    Args:
      folder: The output folder.
      num_jobs: Files that it is to do.
      num_shards: Of the run.
      shard_index: Which of them this is.
    """
    run = f"shard {shard_index} of {num_shards}" if num_shards > 1 else "the run"
    row = [f"{num_jobs} files", f"{run} {_UNFINISHED}"]
    _write_rows(_failure_file(folder, num_shards, shard_index), [row])


def write_failures(
    folder: pathlib.Path,
    failed: Sequence[Outcome],
    num_shards: int = 1,
    shard_index: int = 0,
    *,
    num_left: int = 0,
) -> None:
    """Writes the files that could not be finished.

    None leave no file behind, but for a shard, whose file tells that it has run. What
    runs with another number of shards have left is out of date.

    Args:
      folder: The output folder.
      failed: These files.
      num_shards: Of the run.
      shard_index: Which of them this is.
      num_left: Files that the run did not come to, since it ended at an error.
    """
    path = _failure_file(folder, num_shards, shard_index)
    for older in _failure_files(folder):
        if older != path and not older.stem.endswith(f"_of_{num_shards}"):
            older.unlink(missing_ok=True)
    if not failed and num_shards == 1:
        path.unlink(missing_ok=True)
        return
    left = [[f"{num_left} files", LEFT]] if num_left else []
    _write_rows(path, [*([str(o.job.relative), o.error] for o in failed), *left])


def _failure_file(
    folder: pathlib.Path, num_shards: int, shard_index: int
) -> pathlib.Path:
    shard = f"_{shard_index}_of_{num_shards}" if num_shards > 1 else ""
    return folder / f"failed{shard}.csv"


def _write_rows(path: pathlib.Path, rows: Sequence[Sequence[str]]) -> None:
    with writing_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["image", "error"], *rows])


def read_failures(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yields image and error of all files that could not be finished."""
    for path in _failure_files(folder):
        with open(path, newline="", **TEXT) as file:
            for row in csv.DictReader(file):
                yield row["image"], row["error"]


def find_missing_shards(folder: pathlib.Path) -> list[str]:
    """Names the shards that have not run to their end: "3 of 8"."""
    ran = [path.stem.split("_")[1::2] for path in _failure_files(folder)]
    return [
        f"{index} of {count}"
        for count in {count for _, count in filter(None, ran)}
        for index in range(int(count))
        if [str(index), count] not in ran
    ]


def _failure_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists what `write_failures` has left, and nothing else of such a name."""
    return sorted(p for p in folder.iterdir() if _FAILURES.fullmatch(p.name))


def merge(folder: pathlib.Path) -> int:
    """Writes nuclei.csv, summary.csv and report.html over all finished images.

    Returns:
      The number of images.
    """
    settings = read_settings(folder)
    count = merge_tables(folder, identify(settings))
    write_report(
        folder,
        title="Nuclei",
        settings=settings,
        failures=list(read_failures(folder)),
    )
    return count
