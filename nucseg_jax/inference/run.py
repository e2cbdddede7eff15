"""The loop over many files: read, predict, write."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from nucseg_jax.data import images
from nucseg_jax.inference import outputs
from nucseg_jax.inference.instances import label_nuclei

FOLDERS = ("masks", "probabilities", "overlays")


@dataclasses.dataclass(frozen=True)
class Job:
    """One file to predict, and the name of its results below each output folder."""

    image: pathlib.Path
    name: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one job: the number of nuclei, or the error."""

    job: Job
    num_nuclei: int = 0
    error: str = ""


def find_jobs(source: str | os.PathLike) -> list[Job]:
    """Lists the images of a file or folder, subfolders included, in name order.

    Results keep the image's name, with PNG as ending; where two results would share
    a name, as of a.jpg and a.tif, the whole name stays: a.jpg.png and a.tif.png.

    Raises:
      images.ImageError: If there is no such file or folder, or no image in it.
    """
    root = pathlib.Path(source)
    if root.is_file():
        return [Job(root, pathlib.Path(f"{root.stem}.png"))]
    if not root.is_dir():
        raise images.ImageError(f"{root}: no such file or folder")
    found = sorted(_walk_images(root))
    if not found:
        kinds = ", ".join(images.SUFFIXES)
        raise images.ImageError(f"{root}: holds no image ({kinds})")
    names = _name_results(found)
    return [Job(root / path, name) for path, name in zip(found, names, strict=True)]


def _walk_images(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the images below a folder, relative to it; hidden ones are left out."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            if images.is_image(pathlib.Path(name)):
                yield pathlib.Path(folder, name).relative_to(root)


def predict_files(
    jobs: Iterable[Job],
    predict: Callable[[np.ndarray], np.ndarray],
    output: str | os.PathLike,
    *,
    threshold: float,
) -> list[Outcome]:
    """Predicts and writes each file; one that cannot be read does not end the run.

    Args:
      jobs: From `find_jobs`.
      predict: Image float32 [H, W, 3] -> probabilities float32 [H, W, T].
      output: Folder that gets one folder for each of `FOLDERS`.
      threshold: Least probability of the foreground.

    Returns:
      One outcome a job.
    """
    return [
        _predict_file(job, predict, pathlib.Path(output), threshold) for job in jobs
    ]


def _predict_file(
    job: Job,
    predict: Callable[[np.ndarray], np.ndarray],
    output: pathlib.Path,
    threshold: float,
) -> Outcome:
    try:
        image = images.read_image(job.image)
    except images.ImageError as error:
        return Outcome(job, error=str(error))
    probs = predict(image)[..., 0]
    label_image = label_nuclei(probs, threshold=threshold)
    pictures = (
        outputs.mask_picture(probs >= threshold),
        outputs.probability_picture(probs),
        outputs.overlay_picture(image, label_image),
    )
    for folder, picture in zip(FOLDERS, pictures, strict=True):
        outputs.write_png(output / folder / job.name, picture)
    return Outcome(job, num_nuclei=int(label_image.max(initial=0)))


def _name_results(paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Names each result so that no two are the same."""
    short = [path.with_suffix(".png") for path in paths]
    whole = [path.with_name(f"{path.name}.png") for path in paths]
    uses = collections.Counter(short + whole)
    return [s if uses[s] == 1 else w for s, w in zip(short, whole, strict=True)]
