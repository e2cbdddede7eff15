"""Finds images with their truth in a folder, and splits them into subsets.

Four layouts are told apart by what the folder holds:

  index.csv                    columns id[, group, modality, any split column]; the
                               files lie in images/ and in labels/ or masks/
  images/ labels/              label images of the same name
  images/ masks/               binary masks of the same name
  ID/images/ID.png ID/masks/   the 2018 Data Science Bowl: one mask file a nucleus

Examples come in the order of their ids, whatever order the file system has.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import itertools
import os
import pathlib
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Literal

from nucseg_jax.config import DataConfig
from nucseg_jax.data import images

TruthKind = Literal["labels", "mask", "nuclei"]
SUBSETS = ("train", "val", "test")

_ALIASES = {name: name for name in SUBSETS} | {"valid": "val", "validation": "val"}
_COLUMNS = ("id", "group", "split", "modality")
_NAME_ENDINGS = ("_mask", "_masks", "_label", "_labels")


class DatasetError(ValueError):
    """A folder is not a usable data set; the message says what is wrong and where."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One image and the files of its truth.

    Attributes:
      id: Unique name within the data set.
      image: The image file.
      truth: The truth's file, or for "nuclei" one mask file a nucleus.
      kind: "labels" (a label image), "mask" (binary) or "nuclei".
      group: Examples of one group never sit in two subsets that are drawn.
      columns: Further columns of index.csv.
    """

    id: str
    image: pathlib.Path
    truth: tuple[pathlib.Path, ...]
    kind: TruthKind
    group: str
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def has_instances(self) -> bool:
        """Whether the truth tells touching nuclei apart."""
        return self.kind != "mask"


def fingerprint(examples: Iterable[Example]) -> str:
    """Returns one checksum of ids and files: equal examples, wherever they lie.

    SHA-256, hexadecimal, of all bytes of all files.
    """
    total = hashlib.sha256()
    for example in examples:
        total.update(f"{example.id}\0{example.kind}\0".encode(errors="surrogateescape"))
        for path in (example.image, *example.truth):
            total.update(_digest(path))
    return total.hexdigest()


def _digest(path: pathlib.Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def find_copies(
    examples: Sequence[Example], others: Iterable[Example]
) -> list[Example]:
    """Returns the examples whose image is, byte for byte, that of one of the others."""
    sizes = {example.image.stat().st_size for example in examples}
    known = {_digest(e.image) for e in others if e.image.stat().st_size in sizes}
    return [example for example in examples if _digest(example.image) in known]


def find_examples(
    data_dir: str | os.PathLike, *, truth: str = "auto", skip_missing: bool = False
) -> list[Example]:
    """Finds all examples of a data set, in the order of their ids.

    Args:
      data_dir: Folder in one of the layouts above.
      truth: "labels", "masks", or "auto" for labels where there are any.
      skip_missing: Leave out images without masks, in the Bowl's layout.

    Returns:
      The examples that have an image and a truth.

    Raises:
      DatasetError: If the folder has no known layout, or images lack their truth.
    """
    root = pathlib.Path(data_dir)
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder")
    if (root / "index.csv").is_file():
        examples = _find_indexed(root, truth)
    elif (root / "images").is_dir():
        examples = _find_paired(root, truth)
    else:
        examples = _find_kaggle(root, skip_missing)
    if not examples:
        raise DatasetError(
            f"{root}: holds no images with their truth. Wanted are images/ beside "
            "labels/ or masks/, an index.csv, or ID/images and ID/masks folders"
        )
    return sorted(examples, key=lambda example: example.id)


def split_examples(
    examples: Sequence[Example], config: DataConfig
) -> dict[str, list[Example]]:
    """Splits examples into "train", "val" and "test" as the config asks.

    Raises:
      DatasetError: If the split names no column or file.
    """
    columns = {name for example in examples for name in example.columns}
    column = config.split or "split"
    if column in columns:
        return _split_by_column(examples, column)
    if not config.split:
        return _split_by_fraction(examples, config.val_fraction, config.split_seed)
    return _split_by_lists(examples, config.split.split(","))


def load_subsets(config: DataConfig) -> dict[str, list[Example]]:
    """Finds and splits the examples that a data config names."""
    examples = find_examples(config.data_dir, truth=config.truth)
    return split_examples(examples, config)


def get_subset(
    config: DataConfig, subsets: Mapping[str, list[Example]], name: str
) -> list[Example]:
    """Returns the examples of one subset, or of "all".

    Raises:
      DatasetError: If there are none.
    """
    found = join(subsets) if name == "all" else subsets[name]
    if not found:
        how = _describe_split(config, subsets)
        raise DatasetError(f"{config.data_dir}: has no {name} images ({how})")
    return found


def join(
    subsets: Mapping[str, Sequence[Example]], names: Iterable[str] = SUBSETS
) -> list[Example]:
    """Lists the examples of the named subsets, one subset after the other."""
    return list(itertools.chain.from_iterable(subsets[name] for name in names))


def describe_subsets(
    config: DataConfig, subsets: Mapping[str, Sequence[Example]]
) -> str:
    """Returns one line: the folder, each subset's size, and what divided them."""
    sizes = ", ".join(f"{len(part)} {name}" for name, part in subsets.items() if part)
    return f"data: {config.data_dir} ({sizes}; {_describe_split(config, subsets)})"


def _describe_split(
    config: DataConfig, subsets: Mapping[str, Sequence[Example]]
) -> str:
    if config.split:
        return f"split by {config.split}"
    if "split" in join(subsets)[0].columns:
        return "split by the column split"
    num_groups = len({example.group for example in join(subsets)})
    how = f"drawn at random with --split_seed={config.split_seed}"
    return how if num_groups > 1 else f"{how}, and all are of one group"


def _find_indexed(root: pathlib.Path, truth: str) -> list[Example]:
    rows = _read_index(root / "index.csv")
    repeated = [id_ for id_, n in Counter(row["id"] for row in rows).items() if n > 1]
    if repeated:
        raise DatasetError(f"{root / 'index.csv'}: ids appear twice: {repeated[:5]}")
    files = _files_by_stem(root / "images")
    folder, kind = _choose_truth(root, truth)
    truths = _files_by_stem(folder, files)
    missing = [row["id"] for row in rows if row["id"] not in files]
    if missing:
        raise DatasetError(_missing_message(root / "images", "image", missing))
    # An index may list images whose truth was withdrawn: they are left out.
    return [
        Example(
            id=row["id"],
            image=files[row["id"]],
            truth=(truths[row["id"]],),
            kind=kind,
            group=row.get("group", "").strip() or row["id"],
            # A group with a blank behind its name is no other group.
            columns={k: v.strip() for k, v in row.items() if k != "id"},
        )
        for row in rows
        if row["id"] in truths
    ]


def _read_index(path: pathlib.Path) -> list[dict[str, str]]:
    lines = csv.reader(io.StringIO(_read_text(path), newline=""))
    try:
        header, *rows = [line for line in lines if line] or [[]]
    except csv.Error as error:
        raise DatasetError(f"{path}: line {lines.line_num}: {error}") from error
    if not rows:
        raise DatasetError(f"{path}: lists no image")
    columns = [_column_name(name) for name in header]
    repeated = [name for name, n in Counter(columns).items() if n > 1 and name]
    if repeated:
        raise DatasetError(f"{path}: columns appear twice: {repeated[:5]}")
    if "id" not in columns:
        raise DatasetError(f"{path}: expected a column named id")
    return [
        dict(itertools.zip_longest(columns, row[: len(columns)], fillvalue=""))
        for row in rows
    ]


def _column_name(text: str) -> str:
    """Columns that mean something here do so in any spelling."""
    name = text.strip()
    return name.lower() if name.lower() in _COLUMNS else name


def _find_paired(root: pathlib.Path, truth: str) -> list[Example]:
    files = _files_by_stem(root / "images")
    folder, kind = _choose_truth(root, truth)
    truths = _files_by_stem(folder, files)
    missing = sorted(set(files) - set(truths))
    if missing:
        raise DatasetError(_missing_message(folder, "truth", missing))
    return [
        Example(id=stem, image=path, truth=(truths[stem],), kind=kind, group=stem)
        for stem, path in files.items()
    ]


def _find_kaggle(root: pathlib.Path, skip_missing: bool) -> list[Example]:
    examples, missing = [], []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        found = _list_images(folder / "images")
        nuclei = _list_images(folder / "masks")
        if nuclei and len(found) > 1:
            raise DatasetError(f"{folder / 'images'}: holds {len(found)} images, not 1")
        if found and not nuclei:
            missing.append(folder.name)
        elif found:
            examples.append(
                Example(
                    id=folder.name,
                    image=found[0],
                    truth=tuple(nuclei),
                    kind="nuclei",
                    group=folder.name,
                )
            )
    if examples and missing and not skip_missing:
        raise DatasetError(_missing_message(root, "truth", missing))
    return examples


def _choose_truth(root: pathlib.Path, truth: str) -> tuple[pathlib.Path, TruthKind]:
    """Returns the folder that holds the truth, and its kind."""
    labels, masks = root / "labels", root / "masks"
    if truth in ("auto", "labels") and labels.is_dir():
        return labels, "labels"
    if truth in ("auto", "masks") and masks.is_dir():
        return masks, "mask"
    wanted = "labels/ or masks/" if truth == "auto" else f"{truth}/"
    raise DatasetError(f"{root}: has no folder {wanted} beside images/")


def _list_images(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if images.is_image(path))


def _files_by_stem(
    folder: pathlib.Path, ids: Container[str] | None = None
) -> dict[str, pathlib.Path]:
    """Maps an example's id to its file.

    Args:
      folder: Of images, or of their truth.
      ids: Of the images, if this is their truth: where a stem is none of them, an
        ending such as _mask is left out.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    files: dict[str, pathlib.Path] = {}
    for path in _list_images(folder):
        stem = path.stem
        if ids is not None and stem not in ids:
            endings = [e for e in _NAME_ENDINGS if stem.endswith(e)]
            stem = stem.removesuffix(endings[0]) if endings else stem
        if stem in files:
            raise DatasetError(f"{folder}: {files[stem].name} and {path.name} clash")
        files[stem] = path
    return files


def _missing_message(folder: pathlib.Path, what: str, ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
    return f"{folder}: no {what} for {len(ids)} example(s): {shown}"


def _split_by_column(
    examples: Iterable[Example], column: str
) -> dict[str, list[Example]]:
    subsets: dict[str, list[Example]] = {name: [] for name in SUBSETS}
    for example in examples:
        value = example.columns[column].strip().lower()
        if value not in _ALIASES:
            raise DatasetError(
                f"index.csv: column {column} of {example.id} holds {value!r}; "
                "expected train, val or test"
            )
        subsets[_ALIASES[value]].append(example)
    return subsets


def _split_by_lists(
    examples: Iterable[Example], paths: Sequence[str]
) -> dict[str, list[Example]]:
    """Splits by text files of ids, one a line, in the order train, val, test."""
    if len(paths) > len(SUBSETS):
        raise DatasetError(f"split names {len(paths)} files; at most 3 are wanted")
    by_id = {example.id: example for example in examples}
    subsets: dict[str, list[Example]] = {name: [] for name in SUBSETS}
    seen: dict[str, str] = {}
    for name, path in zip(SUBSETS, paths, strict=False):
        for id_ in _read_list(path):
            if id_ not in by_id:
                raise DatasetError(f"{path}: there is no example {id_!r}")
            if id_ in seen:
                raise DatasetError(f"{path}: {id_!r} stands in {seen[id_]} already")
            seen[id_] = path
            subsets[name].append(by_id[id_])
    return subsets


def _read_list(path: str) -> list[str]:
    if not os.path.isfile(path):
        raise DatasetError(
            f"split {path!r} is neither a column of index.csv nor a file of ids"
        )
    lines = _read_text(pathlib.Path(path)).splitlines()
    return [line.strip() for line in lines if line.strip()]


def _read_text(path: pathlib.Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: is not text in UTF-8 ({error.reason})") from error


def _split_by_fraction(
    examples: Sequence[Example], val_fraction: float, seed: int
) -> dict[str, list[Example]]:
    """Draws whole groups for validation, of about their share.

    Groups are taken that are no larger than what is missing, and then the smallest of
    the others if that comes nearer to the share, or if there is none yet; one is always
    left to learn from. Groups are ordered by a hash of seed and name, so the draw
    depends neither on the order of files nor on a random generator's version.
    """
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.group, []).append(example)
    wanted = max(1, round(val_fraction * len(examples)))
    order = sorted(groups, key=lambda name: _hash(f"{seed}:{name}"))
    drawn, missing = set(), wanted
    for group in order:
        if len(groups[group]) <= missing and len(drawn) < len(groups) - 1:
            drawn.add(group)
            missing -= len(groups[group])
    left = [group for group in order if group not in drawn]
    smallest = min(left, key=lambda group: len(groups[group]))
    is_nearer = not drawn or len(groups[smallest]) < 2 * missing
    if is_nearer and len(left) > 1:
        drawn.add(smallest)
    by_id = sorted(examples, key=lambda example: example.id)
    return {
        "train": [example for example in by_id if example.group not in drawn],
        "val": [example for example in by_id if example.group in drawn],
        "test": [],
    }


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()
