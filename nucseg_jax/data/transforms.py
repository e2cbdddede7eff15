"""Random augmentation by albumentations: named transforms, and recipes of them.

Image and label image always pass through together; the label image takes the nearest
pixel, so it never holds a value that it did not hold before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import cv2
import numpy as np

from nucseg_jax.config import Augmentation

# Without this, importing albumentations asks a server for its newest version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A

# A recipe is a row of steps; a step is the name of a transform, or several of which
# one is drawn, and the probability that it is applied.
Recipe = tuple[tuple[str | tuple[str, ...], float], ...]
Transform = A.BasicTransform | A.BaseCompose

# The ranges are the defaults of albumentations in 2020, written out: later releases
# changed some. GaussNoise drew a variance of 10 to 50 for values of 0 to 255.
_NOISE_STD = (10**0.5 / 255, 50**0.5 / 255)


def _flip(p: float) -> Transform:
    """Mirrors one axis or both, as the Flip that albumentations had in 2020."""
    both = A.Sequential([A.HorizontalFlip(p=1), A.VerticalFlip(p=1)], p=1)
    return A.OneOf([A.HorizontalFlip(p=1), A.VerticalFlip(p=1), both], p=p)


def _rotate(p: float) -> Transform:
    return A.Rotate(limit=(-360, 360), border_mode=cv2.BORDER_REFLECT_101, p=p)


TRANSFORMS: Mapping[str, Callable[[float], Transform]] = {
    "CLAHE": lambda p: A.CLAHE(clip_limit=(1, 4), tile_grid_size=(8, 8), p=p),
    "Rotate": _rotate,
    "Flip": _flip,
    "GaussNoise": lambda p: A.GaussNoise(std_range=_NOISE_STD, p=p),
    "HorizontalFlip": lambda p: A.HorizontalFlip(p=p),
    "VerticalFlip": lambda p: A.VerticalFlip(p=p),
    "HueSaturationValue": lambda p: A.HueSaturationValue(
        hue_shift_limit=(-20, 20),
        sat_shift_limit=(-30, 30),
        val_shift_limit=(-20, 20),
        p=p,
    ),
    "RandomGamma": lambda p: A.RandomGamma(gamma_limit=(80, 120), p=p),
    "RandomBrightnessContrast": lambda p: A.RandomBrightnessContrast(
        brightness_limit=(-0.2, 0.2), contrast_limit=(-0.2, 0.2), p=p
    ),
    # What the recipe of our own adds.
    "D4": lambda p: A.D4(p=p),
    "ColorJitter": lambda p: A.ColorJitter(
        brightness=(0.6, 1.4),
        contrast=(0.7, 1.4),
        saturation=(0.5, 1.5),
        hue=(-0.08, 0.08),
        p=p,
    ),
    "ToGray": lambda p: A.ToGray(p=p),
    "GaussianBlur": lambda p: A.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 1.5), p=p),
}

# CLAHE stands in no recipe: it is preparation, alike in training and prediction.
RECIPES: Mapping[Augmentation, Recipe] = {
    "none": (),
    "flips": (("HorizontalFlip", 0.5), ("VerticalFlip", 0.5)),
    "original": (
        ("Rotate", 1.0),
        ("Flip", 1.0),
        ("GaussNoise", 0.9),
        ("HorizontalFlip", 0.6),
        (("RandomBrightnessContrast", "RandomGamma"), 0.2),
        ("VerticalFlip", 0.7),
        ("HueSaturationValue", 0.5),
    ),
    # Microscopes and stains differ in brightness, hue and focus; nuclei have no up.
    "microscopy": (
        ("D4", 1.0),
        ("ColorJitter", 0.8),
        ("RandomGamma", 0.3),
        ("ToGray", 0.1),
        (("GaussianBlur", "GaussNoise"), 0.4),
    ),
}


def create_augmentation(
    recipe: Augmentation, *, crop: int = 0, zoom: float = 1.0
) -> A.Compose:
    """Creates the transform of a recipe, behind a random crop if one is wanted.

    It keeps a random state, so threads must not share it.

    Args:
      recipe: A name in `RECIPES`.
      crop: Side of a square cut at a random place, pixels; smaller images are
        mirrored at their edges. No crop if 0.
      zoom: The crop's side is drawn between `crop / zoom` and `crop * zoom` and
        resized to `crop`.
    """
    steps = _create_crop(crop, zoom) if crop else []
    return A.Compose(steps + [_create_step(name, p) for name, p in RECIPES[recipe]])


def augment(
    augmentation: A.Compose, image_u8: np.ndarray, label_image: np.ndarray, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Applies an augmentation that depends on nothing but the seed.

    Args:
      augmentation: From `create_augmentation`.
      image_u8: uint8 [H, W, 3].
      label_image: uint16 [H, W].
      seed: From 0 to 2^31 - 1.

    Returns:
      Image and label image, of the same dtypes.
    """
    augmentation.set_random_seed(seed)
    result = augmentation(image=image_u8, mask=label_image)
    return result["image"], result["mask"]


def _create_step(name: str | tuple[str, ...], p: float) -> Transform:
    if isinstance(name, str):
        return TRANSFORMS[name](p)
    return A.OneOf([TRANSFORMS[choice](1.0) for choice in name], p=p)


def _create_crop(side: int, zoom: float) -> list[Transform]:
    smallest, largest = round(side / zoom), round(side * zoom)
    return [
        A.PadIfNeeded(largest, largest, border_mode=cv2.BORDER_REFLECT_101),
        # OpenCV's plain nearest neighbour would shift masks by half a pixel.
        A.RandomSizedCrop(
            (smallest, largest),
            (side, side),
            mask_interpolation=cv2.INTER_NEAREST_EXACT,
            area_for_downscale="image",
        ),
    ]
