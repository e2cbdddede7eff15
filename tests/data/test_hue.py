import dataclasses
import pathlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucseg_jax.data import hue
from nucseg_jax.data.hue import in_gray
from nucseg_jax.data.images import read_image
from nucseg_jax.data.planes import open_planes, plane_of_array
from tests.data.files import encode_tiff

HUES = {
    "gray": (1, 1, 1),
    "blue": (0, 0, 1),
    "green": (0, 1, 0),
    "magenta": (0.9, 0, 1),
    "azure": (0, 0.4, 1),
    "orange": (1, 0.6, 0),
}
SAMPLES = pathlib.Path(__file__).parents[2] / "experiments/sample_data"


def fluorescence(seed: int = 0, shape: tuple[int, int] = (96, 128)) -> np.ndarray:
    """Blurred discs of several brightnesses on noise, float64 [H, W], 0 to 255."""
    rng = np.random.default_rng(seed)
    image = np.zeros(shape)
    rows, columns = np.indices(shape)
    for _ in range(9):
        row, column = rng.uniform(0, shape)
        disc = np.hypot(rows - row, columns - column) < rng.uniform(4, 9)
        image[disc] += rng.uniform(60, 190)
    return (cv2.GaussianBlur(image, (0, 0), 1.5) + rng.normal(8, 2, shape)).clip(0, 255)


def coloured(image: np.ndarray, colour: tuple[float, ...], dtype=np.uint8):
    return (image[..., None] * np.array(colour)).round().astype(dtype)


def seen(pixels: np.ndarray) -> tuple[int, ...]:
    return in_gray(plane_of_array(pixels)).segmented


@pytest.mark.parametrize("name", HUES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_one_hue_on_black_is_seen_by_its_strongest_channel(name, dtype):
    pixels = coloured(fluorescence(), HUES[name], dtype)
    assert seen(pixels) == (int(np.argmax(HUES[name])),)


@pytest.mark.parametrize("quality", [80, 95])
def test_blue_stays_blue_as_jpeg(quality):
    pixels = coloured(fluorescence(), HUES["blue"])
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    _, data = cv2.imencode(".jpg", pixels[..., ::-1], options)
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    assert decoded[..., 1].any() and seen(decoded) == (2,)


@pytest.mark.parametrize("brightness", [0.15, 0.5, 1])
def test_two_stains_are_left_as_they_are(brightness):
    """Also where one of them has but a fiftieth of the other's variance."""
    first, second = fluorescence(1), fluorescence(2) * brightness
    pixels = np.stack([0 * first, second, first], axis=-1).astype(np.uint8)
    assert seen(pixels) == (0, 1, 2)
    blank = pixels * np.array([1, 0, 1], np.uint8)
    assert seen(blank) == (2,)


def test_a_scale_bar_in_another_colour_leaves_colours_as_they_are():
    pixels = coloured(fluorescence(), HUES["blue"])
    pixels[80:84, 90:120] = 255
    assert seen(pixels) == (0, 1, 2)


@pytest.mark.parametrize("gamma", [1, 1.4, 1.8, 2.5])
def test_stained_tissue_is_left_as_it_is_however_dark(gamma):
    """Of its colours nearly all variance lies along one line, too."""
    found = 0
    for path in sorted((SAMPLES / "images").iterdir()):
        with open_planes(path) as (plane,):
            pixels = plane.read()[..., :3]
        if np.ptp(pixels, axis=-1).any():
            found += 1
            assert seen((255 * (pixels / 255) ** gamma).astype(np.uint8)) == (0, 1, 2)
    assert found > 5


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((5, 10, 3), np.uint8),
        np.full((5, 10, 3), 7, np.uint16),
        np.full((5, 10, 3), np.nan),
        np.full((5, 10, 3), 1e300),
        np.full((5, 10, 3), -5.0),
        fluorescence()[..., None] * np.array([0, 0, 1e-200]),
    ],
)
def test_images_that_show_nothing_are_left_as_they_are(pixels):
    assert seen(pixels) == (0, 1, 2)


def test_pixels_that_are_not_finite_do_not_count():
    pixels = coloured(fluorescence(), HUES["blue"], np.float32)
    pixels[::7, ::3, 0] = np.nan
    pixels[1::7, :, 1] = np.inf
    assert seen(pixels) == (2,)


@given(
    seed=st.integers(0, 99),
    scale=st.floats(1e-3, 1e3),
    name=st.sampled_from(sorted(HUES)),
)
def test_brightness_says_nothing(seed, scale, name):
    pixels = coloured(fluorescence(seed), HUES[name], float)
    assert seen(pixels * scale) == seen(pixels) == (int(np.argmax(HUES[name])),)


def test_channels_of_a_stack_are_counted_in_the_stack():
    pixels = np.zeros((*fluorescence().shape, 4), np.uint16)
    pixels[..., 3] = fluorescence()
    plane = plane_of_array(pixels, channel=0)
    plane = dataclasses.replace(plane, segmented=(0, 3, 1), may_be_one_hue=True)
    assert in_gray(plane).segmented == (3,)


def test_channels_that_were_asked_for_stay(tmp_path):
    pixels = coloured(fluorescence(), HUES["blue"])
    path = tmp_path / "a.tif"
    path.write_bytes(encode_tiff(pixels, photometric="rgb"))
    for channel, expected in ((None, (2,)), ("0,1,2", (0, 1, 2)), ("red", (0,))):
        with open_planes(path, channel=channel) as (plane,):
            assert in_gray(plane).segmented == expected


@pytest.mark.parametrize("hue", [HUES["blue"], None], ids=["one hue", "many"])
def test_what_was_judged_is_not_judged_again(hue):
    colours = np.random.default_rng(0).random((64, 64, 3))
    pixels = colours if hue is None else coloured(fluorescence(), hue)
    judged = in_gray(plane_of_array(pixels))
    assert len(judged.segmented) == (3 if hue is None else 1)
    object.__setattr__(judged, "_read", None)
    assert in_gray(judged) is judged


def test_one_channel_is_not_looked_at():
    plane = plane_of_array(np.zeros((4, 5), np.uint8))
    object.__setattr__(plane, "_read", None)
    assert in_gray(plane) is plane


def test_of_large_planes_rows_are_read_that_lie_evenly(monkeypatch):
    monkeypatch.setattr(hue, "_MOST_AT_ONCE", 100)
    pixels = coloured(fluorescence(), HUES["blue"])
    read = []

    def look(rows, columns):
        read.append(rows)
        return pixels[rows, columns]

    plane = dataclasses.replace(plane_of_array(pixels), _read=look)
    assert in_gray(plane).segmented == (2,) == seen(pixels)
    assert len(read) == 64 and {rows.stop - rows.start for rows in read} == {1}
    tops = [rows.start for rows in read]
    assert tops[0] == 0 and tops[-1] == 95 and set(np.diff(tops)) == {1, 2}


def test_training_sees_the_same_gray_as_prediction(tmp_path):
    pixels = coloured(fluorescence(), HUES["blue"])
    cv2.imwrite(str(tmp_path / "blue.png"), pixels[..., ::-1])
    image = read_image(tmp_path / "blue.png")
    gray = pixels[..., 2] / np.float32(255)
    np.testing.assert_array_equal(image, np.stack([gray] * 3, axis=-1))
    with open_planes(tmp_path / "blue.png") as (plane,):
        assert in_gray(plane).segmented == (2,)
