"""What a run's folder tells of it, and whether a start goes on with it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.device import describe_machine
from nucseg_jax.config import Config
from nucseg_jax.files import write_json
from nucseg_jax.training.history import read_history

# Settings that a run may change when it is continued.
_FREE = {"num_epochs", "num_workers", "cache_mib", "data_dir", "max_skipped"}


def record_start(workdir: pathlib.Path, fingerprints: Mapping[str, str]) -> None:
    """Adds to starts.json when, where, and with what software and data."""
    path = workdir / "starts.json"
    starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    about = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "data": dict(fingerprints),
    }
    starts.append(about | describe_machine())
    write_json(path, starts)


@contextlib.contextmanager
def alone_in(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other trainings out of a folder; where the system has no locks, does not.

    Raises:
      ValueError: If one is under way there.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / ".lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{workdir}: another training is under way there; choose another "
                "--workdir, or wait for its end"
            ) from error
        except OSError:
            pass  # Some network file systems have none.
        yield


def check_resumable(workdir: pathlib.Path, old: Config | None, new: Config) -> None:
    """Refuses to continue a run with other settings than it began with.

    Raises:
      ValueError: Names the settings that differ, or the epochs that are done if fewer
        are wanted.
    """
    if old is None:
        return
    done = len(read_history(workdir / "history.csv"))
    if done > new.train.num_epochs:
        raise ValueError(
            f"{workdir} has learned for {done} epochs already: give at least "
            f"--num_epochs={done}, or choose another --workdir"
        )
    differing = [
        f"{name} was {before!r}, is {after!r}"
        for section in ("data", "model", "train")
        for name, before, after in _pairs(getattr(old, section), getattr(new, section))
        if name not in _FREE and not _is_same(name, before, after)
    ]
    if differing:
        raise ValueError(
            f"{workdir} holds a run with other settings ({'; '.join(differing)}): "
            "choose another --workdir, or delete it to begin anew"
        )


def _is_same(name: str, before: Any, after: Any) -> bool:
    """Compares a setting; a run to begin with may be named in several ways, or gone."""
    if name == "init" and before and after:
        return os.path.abspath(before) == os.path.abspath(after)
    return before == after


def tell_schedule(old: Config | None, new: Config) -> None:
    """Prints what another number of epochs does to learning rates that depend on it."""
    if old is None or new.train.decay != "cosine":
        return
    before, after = old.train.num_epochs, new.train.num_epochs
    if before != after:
        print(
            f"the learning rate, which was to fall to 0 by epoch {before}, goes on as "
            f"that of {after} epochs"
        )


def write_config(workdir: pathlib.Path, config: Config) -> None:
    """Writes the settings where people look for them; checkpoints hold them too."""
    write_json(workdir / "config.json", config.to_dict())


def _pairs(old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    for field in dataclasses.fields(old):
        yield field.name, getattr(old, field.name), getattr(new, field.name)
