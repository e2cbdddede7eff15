"""Masks that are called label images are found out; label images are not."""

import numpy as np
import PIL.Image
import pytest

from nucseg_jax.data import numbering
from nucseg_jax.data.index import DatasetError, find_examples
from nucseg_jax.data.numbering import check_numbered
from tests.data.test_truth import write, write_pair
from tests.helpers import disc_image


def write_labels(root, *label_images):
    for number, label_image in enumerate(label_images):
        write(root / f"images/{number}.png", np.zeros_like(label_image))
        write(root / f"labels/{number}.png", label_image)
    return find_examples(root)


SQUARE = np.ones((4, 4), np.uint8)
PIECES = np.kron(np.array([[9, 0, 9, 0], [0, 0, 0, 0], [9, 9, 0, 9]], np.uint8), SQUARE)
ONE = np.kron(np.array([[0, 9, 9, 0]] * 3, np.uint8), SQUARE)


@pytest.mark.parametrize(
    "label_images", [[PIECES], [PIECES] * 40, [PIECES, PIECES, ONE]], ids=len
)
def test_masks_that_are_called_labels_are_refused(tmp_path, label_images):
    examples = write_labels(tmp_path, *label_images)
    with pytest.raises(DatasetError, match=r"labels/0\.png: holds one number and seve"):
        check_numbered(examples)


@pytest.mark.parametrize(
    "label_images",
    [[ONE], [ONE, ONE, PIECES], [PIECES, PIECES // 9 + ONE], [0 * ONE]],
    ids=["one nucleus", "most of one nucleus", "numbered", "empty"],
)
def test_label_images_are_taken_as_such(tmp_path, label_images):
    check_numbered(write_labels(tmp_path, *label_images))


@pytest.mark.parametrize("num_discs", [1, 2, 6, 20])
@pytest.mark.parametrize("side", [96, 200])
@pytest.mark.parametrize("smooth", [True, False])
def test_masks_that_were_resized_are_refused_but_not_label_images(
    tmp_path, smooth, side, num_discs
):
    """Of smoothed masks, each shade of gray at the rims would be a nucleus."""
    pictures = []
    for seed in range(4):
        _, labels = disc_image(256, seed, num_discs=num_discs)
        values = (labels > 0) * 255 if smooth else labels
        picture = PIL.Image.fromarray(values.astype(np.uint8))
        how = PIL.Image.Resampling.BILINEAR if smooth else PIL.Image.Resampling.NEAREST
        pictures.append(np.asarray(picture.resize((side, side), how)))
    examples = write_labels(tmp_path, *pictures)
    if not smooth:
        return check_numbered(examples)
    with pytest.raises(DatasetError, match=r"labels/0\.png: holds 5 pixels and less"):
        check_numbered(examples)


def test_of_a_large_label_image_the_centre_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(numbering, "_LARGEST_SIDE", 3)
    corners = np.zeros((9, 9), np.uint8)
    corners[4, 4] = corners[0, 0] = corners[8, 8] = 1
    check_numbered(write_labels(tmp_path, corners))


def test_masks_are_not_label_images(tmp_path):
    check_numbered([write_pair(tmp_path, "masks", PIECES, PIECES.shape)])
    check_numbered([])
