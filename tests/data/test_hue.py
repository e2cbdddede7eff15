import dataclasses

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucseg_jax.data import hue
from nucseg_jax.data.hue import in_gray, strongest_channel
from nucseg_jax.data.images import read_image
from nucseg_jax.data.planes import open_planes, plane_of_array

HUES = {
    "gray": (1, 1, 1),
    "blue": (0, 0, 1),
    "green": (0, 1, 0),
    "magenta": (0.9, 0, 1),
    "azure": (0, 0.4, 1),
    "orange": (1, 0.6, 0),
}


def fluorescence(seed: int = 0, shape: tuple[int, int] = (96, 128)) -> np.ndarray:
    """Discs of several brightnesses on noise, float64 [H, W] of about 0 to 200."""
    rng = np.random.default_rng(seed)
    image = rng.normal(8, 2, shape)
    rows, columns = np.indices(shape)
    for _ in range(9):
        row, column = rng.uniform(0, shape)
        disc = np.hypot(rows - row, columns - column) < rng.uniform(4, 9)
        image[disc] += rng.uniform(60, 190)
    return image.clip(0, 255)


def coloured(image: np.ndarray, colour: tuple[float, ...], dtype=np.uint8):
    return (image[..., None] * np.array(colour)).round().astype(dtype)


@pytest.mark.parametrize("name", HUES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_one_hue_on_black_is_seen_by_its_strongest_channel(name, dtype):
    pixels = coloured(fluorescence(), HUES[name], dtype)
    expected = int(np.argmax(HUES[name]))
    assert strongest_channel([pixels.reshape(-1, 3)]) == expected
    assert in_gray(plane_of_array(pixels)).segmented == (expected,)


@pytest.mark.parametrize("name", HUES)
@pytest.mark.parametrize("quality", [80, 95])
def test_one_hue_stays_one_hue_as_jpeg(name, quality):
    pixels = coloured(fluorescence(), HUES[name])
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    _, data = cv2.imencode(".jpg", pixels[..., ::-1], options)
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB).reshape(-1, 3)
    found = strongest_channel([decoded])
    assert HUES[name][found] == 1


def test_two_stains_are_left_as_they_are():
    first, second = fluorescence(1), fluorescence(2)
    pixels = np.stack([0 * first, second, first], axis=-1).astype(np.uint8)
    assert strongest_channel([pixels.reshape(-1, 3)]) is None
    assert in_gray(plane_of_array(pixels)).segmented == (0, 1, 2)


def test_stains_on_white_are_left_as_they_are():
    # One hue, as eosin alone would be, but on a bright background.
    light = fluorescence()[..., None] / 255
    pixels = (255 * (1 - light * np.array([0.3, 0.8, 0.4]))).astype(np.uint8)
    assert strongest_channel([pixels.reshape(-1, 3)]) is None


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((50, 3), np.uint8),
        np.full((50, 3), 7, np.uint16),
        np.full((50, 3), np.nan),
        np.zeros((0, 3)),
        np.array([[0, 0, -1e308], [0, 0, 1e308]]),
    ],
)
def test_images_that_show_nothing_are_left_as_they_are(pixels):
    assert strongest_channel([pixels]) is None


def test_pixels_that_are_not_finite_do_not_count():
    pixels = coloured(fluorescence(), HUES["blue"], np.float32).reshape(-1, 3)
    pixels[::7, 0] = np.nan
    pixels[1::7, 1] = np.inf
    assert strongest_channel([pixels]) == 2


@given(
    seed=st.integers(0, 99),
    cuts=st.lists(st.integers(1, 95), max_size=4, unique=True),
    name=st.sampled_from(sorted(HUES)),
)
def test_parts_say_what_the_whole_says(seed, cuts, name):
    pixels = coloured(fluorescence(seed), HUES[name])
    parts = [part.reshape(-1, 3) for part in np.split(pixels, sorted(cuts))]
    assert strongest_channel(parts) == strongest_channel([pixels.reshape(-1, 3)])


def test_variance_along_a_line_is_that_of_the_principal_component():
    rng = np.random.default_rng(0)
    line = rng.gamma(1, 30, (5000, 1)) * np.array([0.2, 0.5, 1])
    for noise, expected in ((5, 2), (6, None)):
        pixels = line + rng.normal(0, noise, (5000, 3))
        shares = np.linalg.svd(pixels - pixels.mean(axis=0), compute_uv=False) ** 2
        assert (shares[0] >= 0.95 * shares.sum()) == (expected is not None)
        assert strongest_channel([pixels]) == expected


def test_channels_of_a_stack_are_counted_in_the_stack():
    pixels = np.zeros((*fluorescence().shape, 4), np.uint16)
    pixels[..., 3] = fluorescence()
    plane = dataclasses.replace(plane_of_array(pixels, channel=0), segmented=(0, 3, 1))
    assert in_gray(plane).segmented == (3,)


def test_one_channel_is_not_looked_at():
    plane = plane_of_array(np.zeros((4, 5), np.uint8))
    object.__setattr__(plane, "_read", None)
    assert in_gray(plane) is plane


def test_of_large_planes_bands_are_read_that_lie_evenly(monkeypatch):
    monkeypatch.setattr(hue, "_BAND_VALUES", 128 * 3 * 2)
    pixels = coloured(fluorescence(), HUES["blue"])
    tops = []

    def read(rows, columns):
        tops.append(rows.start)
        return pixels[rows, columns]

    plane = dataclasses.replace(plane_of_array(pixels), _read=read)
    assert in_gray(plane).segmented == (2,)
    assert len(tops) == 16 and tops[0] == 0 and tops[-1] == 94
    assert max(np.diff(tops)) <= 7


def test_training_sees_the_same_gray_as_prediction(tmp_path):
    pixels = coloured(fluorescence(), HUES["blue"])
    cv2.imwrite(str(tmp_path / "blue.png"), pixels[..., ::-1])
    image = read_image(tmp_path / "blue.png")
    gray = pixels[..., 2] / np.float32(255)
    np.testing.assert_array_equal(image, np.stack([gray] * 3, axis=-1))
    with open_planes(tmp_path / "blue.png") as (plane,):
        assert in_gray(plane).segmented == (2,)
