import re

import numpy as np
import PIL.Image
import pytest

from nucseg_jax.data import images, truth
from nucseg_jax.data.index import Example, find_examples

LABELS = np.array([[0, 0, 300], [7, 7, 0]], np.uint16)


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path, **options)


def write_pair(root, folder, pixels, shape=(2, 3)):
    write(root / "images/a.png", np.full(shape, 51, np.uint8))
    write(root / folder / "a.png", pixels)
    (example,) = find_examples(root)
    return example


def write_nuclei(root, *masks):
    write(root / "a/images/a.png", np.full((2, 3), 51, np.uint8))
    for number, mask in enumerate(masks):
        write(root / f"a/masks/{number}.png", np.array(mask, np.uint8) * 255)
    (example,) = find_examples(root)
    return example


def test_label_image_is_kept(tmp_path):
    image, labels = truth.read_pair(write_pair(tmp_path, "labels", LABELS))
    assert image.dtype == np.float32 and labels.dtype == np.int32
    np.testing.assert_allclose(image, np.full((2, 3, 3), 0.2), rtol=1e-6)
    np.testing.assert_array_equal(labels, LABELS)


def test_binary_mask_has_the_one_label_1(tmp_path):
    mask = (LABELS > 0).astype(np.uint8) * 200
    _, labels = truth.read_pair(write_pair(tmp_path, "masks", mask))
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, LABELS > 0)


def test_nuclei_are_numbered_in_the_order_of_their_files(tmp_path):
    masks = [[0, 0, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0]], [[1, 0, 0], [0, 0, 0]]
    _, labels = truth.read_pair(write_nuclei(tmp_path, *masks))
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, [[3, 0, 1], [2, 2, 0]])


def test_where_nuclei_overlap_the_later_one_lies_above(tmp_path):
    masks = [[1, 1, 0], [0, 0, 0]], [[0, 1, 1], [0, 0, 0]]
    labels = truth.read_truth(write_nuclei(tmp_path, *masks))
    np.testing.assert_array_equal(labels, [[1, 2, 2], [0, 0, 0]])


def test_empty_nucleus_adds_nothing(tmp_path):
    empty = [[0, 0, 0], [0, 0, 0]]
    labels = truth.read_truth(write_nuclei(tmp_path, empty, empty))
    np.testing.assert_array_equal(labels, np.zeros((2, 3)))


@pytest.mark.parametrize("folder", ("labels", "masks"))
def test_other_size_than_the_image_names_both_files(tmp_path, folder):
    example = write_pair(tmp_path, folder, LABELS.astype(np.uint8), shape=(3, 2))
    both = f"{folder}/a.png: is (2, 3) pixels", "images/a.png is (3, 2)"
    with pytest.raises(images.ImageError, match=".*".join(map(re.escape, both))):
        truth.read_pair(example)


def test_nucleus_of_other_size_is_named(tmp_path):
    example = write_nuclei(tmp_path, [[0, 1, 0], [0, 0, 0]], [[1, 0]])
    with pytest.raises(images.ImageError, match=r"masks/1\.png: is \(1, 2\) pixels"):
        truth.read_pair(example)


@pytest.mark.parametrize("broken", ("images", "labels"))
def test_file_that_cannot_be_read_is_named(tmp_path, broken):
    example = write_pair(tmp_path, "labels", LABELS)
    (tmp_path / broken / "a.png").write_bytes(b"no pixels")
    with pytest.raises(images.ImageError, match=f"{broken}/a.png"):
        truth.read_pair(example)


@pytest.mark.parametrize("orientation", (3, 6, 8))
def test_image_and_truth_turn_together(tmp_path, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    pixels = LABELS.astype(np.uint8)
    for name in ("image", "labels"):
        write(tmp_path / f"{name}.png", pixels, exif=exif)
    example = Example(
        id="a",
        image=tmp_path / "image.png",
        truth=(tmp_path / "labels.png",),
        kind="labels",
        group="a",
    )
    image, labels = truth.read_pair(example)
    assert not np.array_equal(labels, pixels)
    np.testing.assert_array_equal(np.round(image[..., 0] * 255), labels)
