"""The networks that come with the package: where they lie, and that they are whole.

Each is a folder of the layout that training writes (`checkpoints.py`), with its model
card and the checksums of all its files, in the format of the sha256sum command.
"""

from __future__ import annotations

import hashlib
import os
import pathlib

import jax

from nucseg_jax import device
from nucseg_jax.checkpoints import CheckpointError
from nucseg_jax.files import writing_text

NAMES = ("small", "base")

_SUMS = "SHA256SUMS"


def choose() -> str:
    """Names the network for JAX's device: "small" on a CPU, "base" on any other."""
    device.start()
    return "small" if jax.default_backend() == "cpu" else "base"


def is_named(checkpoint: str | os.PathLike) -> bool:
    """Whether this names one of `NAMES`, and no run that lies in such a folder.

    A folder of results may well be called like the network that made them.
    """
    name = os.fspath(checkpoint)
    return name in NAMES and not pathlib.Path(name, "checkpoints").is_dir()


def resolve(checkpoint: str | os.PathLike | None) -> pathlib.Path:
    """Finds the folder of a network.

    Args:
      checkpoint: A folder, or one of `NAMES`, see `is_named`; None = the one that
        `choose` names.

    Raises:
      CheckpointError: If a network of the package, or one that was exported, is
        damaged, or the name is empty, as that of a variable that is not set.
    """
    if checkpoint is None:
        return find(choose())
    name = os.fspath(checkpoint)
    if not name:
        raise CheckpointError("the checkpoint's name is empty; None takes the default")
    if is_named(name):
        return find(name)
    folder = pathlib.Path(name)
    if (folder / _SUMS).is_file():
        check_sums(folder)
    return folder


def is_shipped(folder: str | os.PathLike) -> bool:
    """Whether this is a folder of the package's own, where nothing is to be written."""
    return pathlib.Path(folder).resolve().parent == pathlib.Path(__file__).parent


def find(name: str) -> pathlib.Path:
    """Returns the package's own folder of one of `NAMES`.

    Raises:
      CheckpointError: If it is damaged.
    """
    folder = pathlib.Path(__file__).parent / name
    check_sums(folder)
    return folder


def write_sums(folder: str | os.PathLike) -> None:
    """Writes the checksums of all files below a folder into it."""
    root = pathlib.Path(folder)
    lines = [f"{_sum(root / name)}  {name}\n" for name in _list_files(root)]
    with writing_text(root / _SUMS) as file:
        file.writelines(lines)


def check_sums(folder: str | os.PathLike) -> None:
    """Compares all files below a folder with its checksums.

    Unknown ones may lie beside the checkpoints: file managers leave their own.

    Raises:
      CheckpointError: Names the first file that is damaged, missing or unknown.
    """
    root = pathlib.Path(folder)
    cure = "install the package" if is_shipped(root) else "export the network"
    if not (root / _SUMS).is_file():
        raise CheckpointError(f"{root / _SUMS}: is missing; {cure} again")
    lines = (root / _SUMS).read_text(encoding="utf-8").splitlines()
    wanted = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    have = {
        name: _sum(root / name)
        for name in _list_files(root)
        if name in wanted or name.startswith("checkpoints/")
    }
    for name in sorted(wanted.keys() | have.keys()):
        if have.get(name) == wanted.get(name):
            continue
        state = "is damaged"
        if name not in have:
            state = "is missing"
        elif name not in wanted:
            state = "does not belong there"
        raise CheckpointError(f"{root / name}: {state}; {cure} again")


def _list_files(root: pathlib.Path) -> list[str]:
    found = (path for path in root.rglob("*") if path.is_file() and path.name != _SUMS)
    return sorted(path.relative_to(root).as_posix() for path in found)


def _sum(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
