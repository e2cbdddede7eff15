"""Results as pictures."""

import os

import numpy as np
import PIL.Image
import pytest

from nucseg_jax.data import images
from nucseg_jax.inference import outputs

RNG = np.random.default_rng(0)
PIXELS = {
    "gray": RNG.integers(0, 256, (5, 7), np.uint8),
    "colour": RNG.integers(0, 256, (5, 7, 3), np.uint8),
    "16 bits": RNG.integers(0, 65536, (5, 7), np.uint16),
}


@pytest.mark.parametrize("kind", PIXELS)
def test_pictures_are_read_back_exactly(tmp_path, kind):
    path = tmp_path / "new" / "folder" / "picture.png"
    outputs.write_png(path, PIXELS[kind])
    with PIL.Image.open(path) as picture:
        assert picture.format == "PNG"
        np.testing.assert_array_equal(np.asarray(picture), PIXELS[kind])
    assert os.listdir(path.parent) == ["picture.png"]


def test_16_bit_labels_are_read_back_by_our_reader(tmp_path):
    outputs.write_png(tmp_path / "labels.png", PIXELS["16 bits"])
    labels = images.read_label_image(tmp_path / "labels.png")
    np.testing.assert_array_equal(labels, PIXELS["16 bits"])


@pytest.mark.parametrize("name", ["a b.png", "Zellkörper 核 №1.png", "x.y.tif.png"])
def test_names_may_hold_spaces_and_any_script(tmp_path, name):
    path = tmp_path / "Größe 2" / name
    outputs.write_png(path, PIXELS["gray"])
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(path)), PIXELS["gray"])
    assert os.listdir(path.parent) == [name]


def test_a_new_picture_replaces_the_old_one(tmp_path):
    path = tmp_path / "picture.png"
    for kind in ("gray", "colour"):
        outputs.write_png(path, PIXELS[kind])
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(path)), PIXELS["colour"])


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        outputs.write_png(tmp_path / "file" / "picture.png", PIXELS["gray"])


def test_mask_picture_is_black_and_white():
    picture = outputs.mask_picture(np.array([[True, False]]))
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, [[255, 0]])


def test_probability_picture_rounds_to_the_nearest_of_256_steps():
    probs = np.array([[0, 0.001, 0.002, 0.5, 0.997, 0.999, 1]], np.float32)
    picture = outputs.probability_picture(probs)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, [[0, 0, 1, 128, 254, 255, 255]])


def test_stretch_brings_a_dim_image_to_the_full_range():
    dim = 0.1 + 0.01 * RNG.random((50, 40, 3), np.float32)
    bright = outputs.stretch_contrast(dim)
    assert (bright.min(), bright.max()) == (0, 1)
    order = np.argsort(dim, axis=None)
    assert (np.diff(bright.ravel()[order]) >= 0).all()
    np.testing.assert_allclose(outputs.stretch_contrast(3 * dim), bright, atol=1e-4)


def test_stretch_cuts_the_darkest_1_and_the_brightest_fifth_of_a_percent():
    ramp = np.linspace(0, 1, 3003, dtype=np.float32).reshape(7, 143, 3)
    expected = np.clip((ramp - 0.01) / (0.998 - 0.01), 0, 1)
    np.testing.assert_allclose(outputs.stretch_contrast(ramp), expected, atol=1e-5)


def test_stretch_of_one_value_everywhere_is_black():
    assert (outputs.stretch_contrast(np.full((4, 4, 3), 0.7, np.float32)) == 0).all()
