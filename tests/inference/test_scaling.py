import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucseg_jax.inference import scaling

SCALES = st.sampled_from([0.23, 0.5, 0.8, 1.0, 1.7, 3.0])


def noise(height, width):
    rng = np.random.default_rng(height * 1000 + width)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 80), st.integers(1, 80), SCALES, st.data())
def test_a_region_is_part_of_the_whole(height, width, scale, data):
    image = noise(height, width)
    read = scaling.scaled_reader(lambda r, c: image[r, c], (height, width), scale)
    rows, columns = scaling.scaled_shape((height, width), scale)
    whole = read(slice(0, rows), slice(0, columns))
    top = data.draw(st.integers(0, rows - 1))
    left = data.draw(st.integers(0, columns - 1))
    part = read(slice(top, rows), slice(left, columns))
    # One step of 256: the blur rounds the same sums in another order.
    assert np.abs(part.astype(int) - whole[top:, left:]).max() <= 1


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.integers(1, 60), SCALES, st.integers(1, 20))
def test_rows_come_back_in_order_and_number(height, width, scale, band):
    shape = scaling.scaled_shape((height, width), scale)
    result = np.random.default_rng(0).random((*shape, 2), np.float32)
    bands = [result[k : k + band] for k in range(0, len(result), band)]
    pieces = list(scaling.restore_rows(bands, shape, (height, width), scale))
    whole = np.concatenate(
        list(scaling.restore_rows([result], shape, (height, width), scale))
    )
    assert whole.shape == (height, width, 2)
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-5)


def test_a_scale_of_one_changes_nothing():
    image = noise(20, 30)
    read = scaling.scaled_reader(lambda r, c: image[r, c], (20, 30), 1.0)
    np.testing.assert_array_equal(read(slice(3, 20), slice(0, 9)), image[3:, :9])
    (same,) = scaling.restore_rows([image / 255.0], (20, 30), (20, 30), 1.0)
    np.testing.assert_allclose(same, image / 255.0)


@pytest.mark.parametrize("scale", [0.25, 0.5, 2.0, 4.0])
def test_a_slope_stays_where_it_was(scale):
    """There and back, a smooth slope is not shifted by half a pixel."""
    slope = np.repeat(np.arange(128, dtype=np.uint8)[:, None, None], 128, 1)
    image = np.repeat(slope, 3, 2)
    shape = scaling.scaled_shape((128, 128), scale)
    read = scaling.scaled_reader(lambda r, c: image[r, c], (128, 128), scale)
    scaled = read(slice(0, shape[0]), slice(0, shape[1])).astype(np.float32)
    rows = scaling.restore_rows([scaled], shape, (128, 128), scale)
    back = np.concatenate(list(rows))
    np.testing.assert_allclose(back[8:-8], image[8:-8], atol=0.6)


def test_shrinking_averages_fine_grain():
    image = np.zeros((200, 200, 3), np.uint8)
    image[::2] = 255
    read = scaling.scaled_reader(lambda r, c: image[r, c], (200, 200), 0.25)
    assert abs(read(slice(5, 45), slice(5, 45)).astype(float) - 127.5).max() < 12


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_rows_may_be_longer_than_opencv_likes(channels):
    """It counts pixels by 16 bits."""
    result = np.random.default_rng(0).random((2, 40_000, channels), np.float32)
    (restored,) = scaling.restore_rows([result], (2, 40_000), (3, 50_000), 0.8)
    assert restored.shape == (3, 50_000, channels)
    part = result[:, 39_000:]
    (expected,) = scaling.restore_rows([part], (2, 1000), (3, 1250), 0.8)
    np.testing.assert_allclose(restored[:, -1000:], expected[:, -1000:], atol=0.05)
