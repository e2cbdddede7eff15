"""Brings the 2018 Data Science Bowl's folders into label images and an index.

    python -m experiments.prepare --input=stage1_train.zip --output=data/dsb2018

Reads ID/images/ID.png and ID/masks/*.png, one mask file a nucleus, from a folder or a
zip file, and writes images/ID.png, labels/ID.png and index.csv. Images without masks
are left out.
"""

from __future__ import annotations

import csv
import os
import pathlib
import shutil
import tempfile
import zipfile
import zlib

import numpy as np
import tqdm

from experiments import flags as shared
from nucseg_jax.data.index import find_examples
from nucseg_jax.data.truth import read_pair
from nucseg_jax.inference.outputs import write_png

_INPUT = shared.source("Folder or zip file.")
_OUTPUT = shared.output("Folder to create.")

_MAX_UNPACKED_BYTES = 20 << 30  # The whole of stage 1 unpacks to less than 1 GiB.


def main() -> None:
    """Prepares the data set; the output folder appears when it is complete."""
    output = pathlib.Path(_OUTPUT.value)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} exists and is not empty; choose another --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=output.parent) as scratch:
        source = unpack(pathlib.Path(_INPUT.value), pathlib.Path(scratch) / "unpacked")
        result = pathlib.Path(scratch) / "result"
        count = prepare(source, result)
        os.replace(result, output)
    print(f"{count} images -> {output}")


def unpack(source: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
    """Returns the folder of a data set, unpacking a zip file into `scratch`.

    Raises:
      ValueError: If the source is no folder and no zip file, or is damaged, or
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


def prepare(source: pathlib.Path, output: pathlib.Path) -> int:
    """Writes images, label images and index.csv; returns the number of images."""
    rows = []
    (output / "images").mkdir(parents=True)
    for example in tqdm.tqdm(find_examples(source), desc="preparing", unit="image"):
        _, label_image = read_pair(example)
        label_image = number_consecutively(label_image)
        name = pathlib.Path(f"{example.id}{example.image.suffix.lower()}")
        shutil.copyfile(example.image, output / "images" / name)
        labels = output / "labels" / name.with_suffix(".png")
        write_png(labels, label_image)
        height, width = label_image.shape
        rows.append([example.id, height, width, label_image.max()])
    with open(output / "index.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "height", "width", "nuclei"])
        writer.writerows(rows)
    return len(rows)


def number_consecutively(label_image: np.ndarray) -> np.ndarray:
    """Renumbers nuclei 1..n in the order of their labels; uint16 [H, W]."""
    nuclei = np.unique(label_image[label_image > 0])
    numbers = np.searchsorted(nuclei, label_image) + 1
    return np.where(label_image > 0, numbers, 0).astype(np.uint16)


def _wraps(folder: pathlib.Path) -> bool:
    return not (folder / "masks").is_dir()


if __name__ == "__main__":
    shared.run(main)
