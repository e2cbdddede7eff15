import albumentations as A
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucseg_jax.config import DataConfig
from nucseg_jax.data import preprocessing

RNG = np.random.default_rng(0)


def cells(height=70, width=90):
    """Dim colours with bright spots, uint8 [H, W, 3]."""
    rows, columns = np.mgrid[:height, :width]
    spots = 90 * (np.sin(rows / 5) * np.sin(columns / 7) > 0.4)
    shade = np.array([1.0, 0.8, 0.9])
    noise = RNG.normal(0, 6, (height, width, 3))
    return ((40 + spots)[..., None] * shade + noise).clip(0, 255).astype(np.uint8)


# Contrast.


@pytest.mark.parametrize("clip_limit", (1.0, 2.5, 4.0, 40.0))
@pytest.mark.parametrize("shape", ((64, 64), (70, 90), (33, 8), (5, 3), (1, 1)))
def test_equalize_is_albumentations_clahe(clip_limit, shape):
    image_u8 = cells(*shape)
    reference = A.CLAHE(clip_limit=(clip_limit, clip_limit), tile_grid_size=(8, 8), p=1)
    np.testing.assert_array_equal(
        preprocessing.equalize(image_u8, clip_limit=clip_limit),
        reference(image=image_u8)["image"],
    )


def test_equalize_is_deterministic_and_leaves_its_input():
    image_u8 = cells()
    before = image_u8.copy()
    first, second = (preprocessing.equalize(image_u8, clip_limit=2.5) for _ in "12")
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(image_u8, before)


def test_equalize_widens_the_contrast_with_its_limit():
    image_u8 = cells(256, 256)
    spread = [
        preprocessing.equalize(image_u8, clip_limit=limit).std()
        for limit in (1.5, 2.5, 8.0)
    ]
    assert image_u8.std() < spread[0] < spread[1] < spread[2]


def test_equalize_keeps_gray_gray():
    gray = cells()[..., :1].repeat(3, axis=-1)
    channels = preprocessing.equalize(gray, clip_limit=2.5).astype(int)
    assert np.ptp(channels, axis=-1).max() <= 1


# Steps of gray.


def test_8_bits_survive_the_round_trip():
    steps = np.arange(256, dtype=np.uint8).reshape(4, 64)
    image = preprocessing.to_float(steps)
    assert image.dtype == np.float32 and image.min() == 0 and image.max() == 1
    np.testing.assert_allclose(image, steps / 255, rtol=1e-7)
    back = preprocessing.to_uint8(image)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, steps)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
def test_to_uint8_takes_the_nearest_step(values):
    image = np.array(values, np.float32)
    error = np.abs(preprocessing.to_uint8(image) / 255 - image.astype(np.float64))
    assert error.max() <= 0.5 / 255 + 1e-7


# Sizes.


@pytest.mark.parametrize("transposed", (False, True))
@pytest.mark.parametrize(
    ("shape", "size"),
    (
        ((250, 2000), (256, 256)),
        ((256, 256), (250, 2000)),
        ((300, 300), (256, 256)),
        ((100, 90), (300, 220)),
        ((200, 800), (200, 300)),
    ),
)
def test_resize_moves_nothing(shape, size, transposed):
    """The centroid of a disc lies where it lay, in shares of the image's sides."""
    shape, size = (shape[::-1], size[::-1]) if transposed else (shape, size)
    for share in ((0.2, 0.7), (0.5, 0.5), (0.8, 0.1)):
        rows, columns = np.ogrid[: shape[0], : shape[1]]
        y, x = (part * length for part, length in zip(share, shape, strict=True))
        disc = ((rows - y) ** 2 + (columns - x) ** 2 < 8**2).astype(np.float32)
        resized = preprocessing.resize(disc, size)
        before = (np.argwhere(disc) + 0.5).mean(axis=0) / shape
        weights = resized[resized > 0] / resized.sum()
        after = (weights[:, None] * (np.argwhere(resized > 0) + 0.5)).sum(axis=0)
        np.testing.assert_allclose(after, before * size, atol=0.05)


@pytest.mark.parametrize("dtype", (np.uint8, np.float32))
@pytest.mark.parametrize("channels", ((), (3,), (4,)))
@pytest.mark.parametrize("size", ((8, 6), (16, 12), (4, 3), (5, 17), (1, 1)))
def test_resize_has_the_wanted_shape_and_keeps_one_shade(dtype, channels, size):
    pixels = np.full((8, 6, *channels), 0.75 if dtype == np.float32 else 191, dtype)
    resized = preprocessing.resize(pixels, size)
    assert resized.shape == (*size, *channels) and resized.dtype == dtype
    np.testing.assert_array_equal(resized, pixels.flat[0])


@pytest.mark.parametrize("dtype", (np.uint8, np.float32))
def test_resize_to_the_same_size_changes_nothing(dtype):
    pixels = (cells() / (1 if dtype == np.uint8 else 255)).astype(dtype)
    np.testing.assert_array_equal(preprocessing.resize(pixels, (70, 90)), pixels)


@pytest.mark.parametrize("factor", (2, 5))
def test_shrinking_averages_areas(factor):
    pixels = RNG.random((40, 30, 3), dtype=np.float32)
    small = preprocessing.resize(pixels, (40 // factor, 30 // factor))
    blocks = pixels.reshape(40 // factor, factor, 30 // factor, factor, 3)
    np.testing.assert_allclose(small, blocks.mean((1, 3)), atol=1e-6)


def test_shrinking_8_bits_rounds_the_average():
    pixels = cells(40, 30)
    small = preprocessing.resize(pixels, (20, 15))
    average = pixels.reshape(20, 2, 15, 2, 3).mean((1, 3))
    assert np.abs(small - average).max() <= 0.5


def test_growing_interpolates_linearly():
    ramp = np.arange(8, dtype=np.float32)[None].repeat(8, axis=0)
    grown = preprocessing.resize(ramp, (16, 16))
    expected = ((np.arange(16) + 0.5) / 2 - 0.5).clip(0, 7)
    np.testing.assert_allclose(grown, np.tile(expected, (16, 1)), atol=1e-6)


# Sizes of labels.


@pytest.mark.parametrize("dtype", (np.uint8, np.uint16, np.int32))
def test_labels_of_the_same_size_stay(dtype):
    labels = RNG.integers(0, 200, (9, 7)).astype(dtype)
    same = preprocessing.resize_labels(labels, (9, 7))
    assert same.dtype == dtype
    np.testing.assert_array_equal(same, labels)


@pytest.mark.parametrize(("rows", "columns"), ((2, 2), (3, 1), (1, 4)))
def test_labels_grow_by_repetition(rows, columns):
    labels = RNG.integers(0, 70_000, (5, 4))
    np.testing.assert_array_equal(
        preprocessing.resize_labels(labels, (5 * rows, 4 * columns)),
        labels.repeat(rows, axis=0).repeat(columns, axis=1),
    )


@pytest.mark.parametrize("factor", (3, 5))
def test_labels_shrink_to_the_middle_of_each_block(factor):
    labels = RNG.integers(0, 70_000, (15, 30))
    middle = factor // 2
    np.testing.assert_array_equal(
        preprocessing.resize_labels(labels, (15 // factor, 30 // factor)),
        labels[middle::factor, middle::factor],
    )


@given(
    old=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    new=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_resized_labels_come_from_a_nearest_pixel(old, new):
    places = np.arange(old[0] * old[1]).reshape(old)
    rows, columns = np.divmod(preprocessing.resize_labels(places, new), old[1])
    for axis, found in enumerate((rows, columns)):
        centre = (np.indices(new)[axis] + 0.5) * old[axis] / new[axis]
        assert np.abs(found + 0.5 - centre).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("size", ((40, 60), (160, 240), (97, 51)))
def test_image_and_labels_stay_aligned_when_resized(size):
    labels = np.zeros((80, 120), np.uint16)
    labels[16:48, 30:90] = 9
    image = (labels[..., None] > 0).repeat(3, -1).astype(np.uint8) * 255
    bright = preprocessing.resize(image, size)[..., 0] > 127
    differs = bright != (preprocessing.resize_labels(labels, size) > 0)
    assert differs.mean() < 0.02


# All of it.


def test_image_of_8_bits_passes_unchanged_where_nothing_is_asked_for():
    image_u8 = cells()
    image = preprocessing.to_float(image_u8)
    config = DataConfig(framing="crop", clahe_clip_limit=0)
    prepared = preprocessing.prepare_image(image, config)
    np.testing.assert_array_equal(prepared, image_u8)


def test_contrast_is_evened_out_after_resizing():
    image_u8 = cells()
    config = DataConfig(size=32, clahe_clip_limit=2.5)
    prepared = preprocessing.prepare_image(preprocessing.to_float(image_u8), config)
    resized = preprocessing.resize(image_u8, (32, 32))
    expected = preprocessing.equalize(resized, clip_limit=2.5)
    assert prepared.shape == (32, 32, 3) and prepared.dtype == np.uint8
    np.testing.assert_array_equal(prepared, expected)
    assert not np.array_equal(prepared, resized)


def counts_of(*values):
    return np.bincount(np.array(values), minlength=256)


def test_stretching_takes_the_percentiles_to_the_ends():
    values = np.repeat(np.arange(100, 201), 20)
    table = preprocessing.contrast_table(counts_of(*values), "stretch")
    low, high = np.percentile(values, (1, 99.8), method="inverted_cdf")
    assert table[int(low)] == 0 and table[int(high)] == 255
    assert (np.diff(table.astype(int)) >= 0).all()


@pytest.mark.parametrize("normalization", ["none", "stretch", "dark"])
def test_a_flat_image_stays_flat_and_finite(normalization):
    image = np.full((6, 7, 3), 0.4, np.float32)
    config = DataConfig(framing="crop", clahe_clip_limit=0, normalization=normalization)
    result = preprocessing.prepare_image(image, config)
    assert len(np.unique(result)) == 1


def test_a_bright_background_becomes_dark_and_a_dark_one_stays():
    dark = np.full((20, 20, 3), 30, np.uint8)
    dark[5:9, 5:9] = 200
    config = DataConfig(framing="crop", clahe_clip_limit=0, normalization="dark")
    for image_u8 in (dark, 255 - dark):
        image = preprocessing.to_float(image_u8)
        result = preprocessing.prepare_image(image, config)
        assert (result[5:9, 5:9] == 255).all() and result[0, 0, 0] == 0


@pytest.mark.parametrize(
    "shape", [(9, 8, 3), (1, 1, 3), (3000, 2000, 3), (1, 50_000, 3)]
)
def test_a_histogram_counts_each_value(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = np.bincount(image.ravel(), minlength=256)
    np.testing.assert_array_equal(preprocessing.histogram(image), expected)


def test_a_histogram_counts_more_than_float32_can():
    image = np.full((4099, 4099, 3), 7, np.uint8)
    assert preprocessing.histogram(image)[7] == image.size


def test_histograms_of_parts_add_up():
    image = np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8)
    parts = preprocessing.histogram(image[:4]) + preprocessing.histogram(image[4:])
    np.testing.assert_array_equal(parts, preprocessing.histogram(image))
