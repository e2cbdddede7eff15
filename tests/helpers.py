"""Tiny networks and synthetic images with known nuclei."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
import PIL.Image

from nucseg_jax.network.unet_plus_plus import UNetPlusPlus

TINY_FEATURES = (2, 3, 4)


def random_variables(model: UNetPlusPlus, seed: int = 0) -> dict:
    """Variables with random statistics too, made without compiling anything."""
    side = 2 ** (model.depth - 1)
    image = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        return (rng.normal(size=leaf.shape) / fan_in**0.5).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, dict(shapes))


def disc_image(side: int, seed: int, num_discs: int = 4):
    """Bright discs on a dark, noisy ground: uint8 [side, side], labels [side, side]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    labels = np.zeros((side, side), np.uint16)
    for label in range(1, num_discs + 1):
        y, x = rng.integers(4, side - 4, 2)
        radius = rng.integers(3, 7)
        labels[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = label
    image = 30 + 150 * (labels > 0) + rng.normal(0, 8, (side, side))
    return image.clip(0, 255).astype(np.uint8), labels


def write_disc_dataset(folder: pathlib.Path, *, num_images: int, side: int) -> None:
    """Writes a data set of discs as images/ and labels/."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for index in range(num_images):
        image, labels = disc_image(side, seed=index)
        PIL.Image.fromarray(image).save(folder / "images" / f"{index:03}.png")
        PIL.Image.fromarray(labels).save(folder / "labels" / f"{index:03}.png")


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    """Tells whether two label images are equal but for the ids."""
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]
