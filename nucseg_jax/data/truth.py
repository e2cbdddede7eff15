"""Reads an example's image and truth, in whichever of the three kinds it is stored."""

from __future__ import annotations

import numpy as np

from nucseg_jax.data import images
from nucseg_jax.data.index import Example


def read_pair(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """Reads image and truth and checks that they fit.

    Returns:
      Image float32 [H, W, 3] in [0, 1], and label image int32 [H, W]; a binary mask
      comes as a label image with the one label 1.

    Raises:
      images.ImageError: If a file cannot be read or the sizes differ.
    """
    image = images.read_image(example.image)
    label_image = read_truth(example)
    if label_image.shape != image.shape[:2]:
        raise images.ImageError(
            f"{example.truth[0]}: is {label_image.shape} pixels (height, width), but "
            f"its image {example.image} is {image.shape[:2]}"
        )
    return image, label_image


def read_truth(example: Example) -> np.ndarray:
    """Reads the truth of an example as a label image, int32 [H, W]."""
    if example.kind == "labels":
        return images.read_label_image(example.truth[0])
    if example.kind == "mask":
        return images.read_mask(example.truth[0]).astype(np.int32)
    return _merge_nuclei(example)


def _merge_nuclei(example: Example) -> np.ndarray:
    """Merges one mask file a nucleus into labels 1..n, in the order of the files."""
    label_image = images.read_mask(example.truth[0]).astype(np.int32)
    for label, path in enumerate(example.truth[1:], start=2):
        mask = images.read_mask(path)
        if mask.shape != label_image.shape:
            raise images.ImageError(
                f"{path}: is {mask.shape} pixels (height, width), but "
                f"{example.truth[0]} is {label_image.shape}"
            )
        label_image[mask > 0] = label
    return label_image
