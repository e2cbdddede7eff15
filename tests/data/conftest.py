"""Small data sets on disk, made for each test."""

import pathlib
from collections.abc import Callable

import numpy as np
import PIL.Image
import pytest

from nucseg_jax.data.index import Example


def _write_example(folder: pathlib.Path, id_: str, shape: tuple[int, int]) -> Example:
    """Writes a noisy image and a label image of two rectangles."""
    rng = np.random.default_rng(int(id_))
    labels = np.zeros(shape, np.uint16)
    labels[2:9, 3:8] = 1
    labels[shape[0] // 2 :, shape[1] // 2 :] = 2
    pixels = rng.integers(0, 120, (*shape, 3)) + 60 * labels[..., None]
    image, truth = folder / f"{id_}.png", folder / f"{id_}_labels.png"
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(image)
    PIL.Image.fromarray(labels).save(truth)
    return Example(id=id_, image=image, truth=(truth,), kind="labels", group=id_)


@pytest.fixture
def write_examples(tmp_path) -> Callable[..., list[Example]]:
    """Function (num, shape) -> examples of images and label images."""

    def write(num: int, shape: tuple[int, int] = (24, 20)) -> list[Example]:
        return [_write_example(tmp_path, f"{n:03}", shape) for n in range(num)]

    return write
