"""Brings the 2018 Data Science Bowl's folders into label images, masks and an index.

    python -m experiments.prepare --input=stage1_train.zip --output=data/dsb2018 \\
        [--corrected=kaggle-dsbowl-2018-dataset-fixes/stage1_train]

Reads ID/images/ID.png and ID/masks/*.png, one mask file a nucleus, from a folder or a
zip file, and writes images/ID.png, labels/ID.png, masks/ID.png and index.csv. Images
without masks are left out. With a corrected annotation of the same layout, label images
are made of that, and masks of the original one; an image that it lacks has no label
image. Where all images are the Bowl's, the index tells modality, group and the splits
of the protocols.
"""

from __future__ import annotations

import csv
import os
import pathlib
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm

from experiments import flags as shared
from nucseg_jax.data.index import Example, find_examples
from nucseg_jax.data.truth import read_pair
from nucseg_jax.inference.outputs import write_png

_INPUT = shared.source("Folder or zip file.")
_OUTPUT = shared.output("Folder to create.")
_CORRECTED = shared.define_path(
    "corrected", "", "Folder or zip file of the same images, with a better annotation."
)

# Of the Bowl's images: kind, group of tiles of one larger image, three splits.
SPLITS = pathlib.Path(__file__).with_name("dsb2018_splits.csv")
_MAX_UNPACKED_BYTES = 20 << 30  # The whole of stage 1 unpacks to less than 1 GiB.


def main() -> None:
    """Prepares the data set; the output folder appears when it is complete."""
    output = pathlib.Path(_OUTPUT.value)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} exists and is not empty; choose another --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=output.parent) as folder:
        scratch = pathlib.Path(folder)
        unpacked = unpack(pathlib.Path(_INPUT.value), scratch / "input")
        source = find_examples(unpacked, skip_missing=True)
        corrected = None
        if _CORRECTED.value:
            better = unpack(pathlib.Path(_CORRECTED.value), scratch / "corrected")
            corrected = find_examples(better, skip_missing=True)
        result = scratch / "result"
        count = prepare(source, result, corrected)
        os.replace(result, output)
    print(f"{count} images -> {output}")


def unpack(source: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
    """Returns the folder of a data set, unpacking a zip file into `scratch`.

    Raises:
      ValueError: If the source is neither a folder nor a zip file, or is damaged, or
        unpacks too large.
    """
    if source.is_dir():
        return source
    if not zipfile.is_zipfile(source):
        raise ValueError(f"{source}: is neither a folder nor a zip file")
    try:
        with zipfile.ZipFile(source) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > _MAX_UNPACKED_BYTES:
                raise ValueError(f"{source}: would unpack to {size >> 30} GiB")
            archive.extractall(scratch)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{source}: is damaged ({error})") from error
    # Some archives hold one folder around everything; macOS adds one of its own.
    found = (path for path in scratch.iterdir() if path.name != "__MACOSX")
    folders = [path for path in found if path.is_dir()]
    return folders[0] if len(folders) == 1 and _wraps(folders[0]) else scratch


def prepare(
    source: Sequence[Example],
    output: pathlib.Path,
    corrected: Sequence[Example] | None = None,
) -> int:
    """Writes images, label images, masks and index.csv.

    Args:
      source: Images with their original annotation.
      output: Folder to create.
      corrected: The same images with a better annotation; None = there is none.

    Returns:
      The number of images.

    Raises:
      ValueError: If an annotation does not tell nuclei apart, images differ in size,
        or the better annotation has none of the images.
    """
    better = {example.id: example for example in corrected or ()}
    rows = []
    for example in (*source, *better.values()):
        if not example.has_instances:
            raise ValueError(
                f"{example.truth[0]}: is a binary mask, which tells no nuclei apart; "
                "expected one mask file a nucleus, or label images. Such a folder can "
                "be learned from as it is, with --targets=foreground"
            )
    if corrected is not None:
        dropped = [example.id for example in source if example.id not in better]
        if len(dropped) == len(source):
            raise ValueError("the better annotation has none of these images")
        _tell_dropped(dropped)
    (output / "images").mkdir(parents=True)
    for example in tqdm.tqdm(source, desc="preparing", unit="image"):
        label_image = read_pair(example)[1]
        labels = label_image
        if corrected is not None:
            labels = _read_corrected(better.get(example.id), example, label_image.shape)
        rows.append(_write_example(example, label_image > 0, labels, output))
    write_index(output / "index.csv", rows)
    return len(rows)


def _tell_dropped(ids: Sequence[str]) -> None:
    """Tells which images the better annotation lacks: they get no label image."""
    if ids:
        more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
        print(
            f"no label image, for the better annotation lacks them, and not learned "
            f"from: {', '.join(ids[:3])}{more}"
        )


def _read_corrected(
    better: Example | None, example: Example, shape: tuple[int, ...]
) -> np.ndarray | None:
    """Reads the corrected label image of an example, None if it was dropped there."""
    if better is None:
        return None
    label_image = read_pair(better)[1]
    if label_image.shape != shape:
        raise ValueError(
            f"{better.image}: is {label_image.shape}, not {shape} as {example.image}"
        )
    return label_image


def _write_example(
    example: Example, mask: np.ndarray, labels: np.ndarray | None, output: pathlib.Path
) -> dict[str, Any]:
    """Writes an example's files; returns its row of the index."""
    name = pathlib.Path(f"{example.id}{example.image.suffix.lower()}")
    shutil.copyfile(example.image, output / "images" / name)
    name = name.with_suffix(".png")
    write_png(output / "masks" / name, np.where(mask, 255, 0).astype(np.uint8))
    height, width = mask.shape
    row = {"id": example.id, "height": height, "width": width, "nuclei": ""}
    if labels is not None:
        # Numbered from 1 without gaps; 0 is background, also where there is none.
        _, numbers = np.unique(np.append(0, labels), return_inverse=True)
        labels = numbers[1:].reshape(labels.shape)
        if labels.max() > np.iinfo(np.uint16).max:
            raise ValueError(
                f"{example.image}: has more nuclei than 16 bits can number"
            )
        labels = labels.astype(np.uint16)
        write_png(output / "labels" / name, labels)
        row["nuclei"] = labels.max()
    return row


def write_index(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes index.csv, with the splits if all images are the Bowl's."""
    with open(SPLITS, newline="", encoding="utf-8") as file:
        known = {row["id"]: row for row in csv.DictReader(file)}
    if all(row["id"] in known for row in rows):
        rows = [row | known[row["id"]] for row in rows]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _wraps(folder: pathlib.Path) -> bool:
    return not (folder / "masks").is_dir()


if __name__ == "__main__":
    shared.run(main)
