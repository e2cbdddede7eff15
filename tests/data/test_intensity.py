import dataclasses
import pathlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucseg_jax.data import intensity, preprocessing
from nucseg_jax.data.intensity import intensity_range, to_rgb
from nucseg_jax.data.planes import Plane

DTYPES = (bool, np.uint8, np.int8, np.uint16, np.int32, np.float16, np.float32, float)


def plane_of(pixels: np.ndarray, segmented: tuple[int, ...] = (0,)) -> Plane:
    """A plane of an array [H, W, C]."""
    return Plane(
        path=pathlib.Path("a.tif"),
        name="a.tif",
        suffix="",
        shape=pixels.shape,
        dtype=pixels.dtype,
        channels=tuple(str(n) for n in range(pixels.shape[-1])),
        segmented=segmented,
        may_be_one_hue=False,
        pixel_size=None,
        files=(),
        _read=lambda rows, columns: pixels[rows, columns],
    )


def percentiles(values: np.ndarray) -> np.ndarray:
    """0.1th and 99.9th, between neighbours where they fall between, in float64."""
    ordered = np.sort(values.astype(np.float64), axis=None)
    places = np.array([0.001, 0.999]) * (ordered.size - 1)
    return np.interp(places, np.arange(ordered.size), ordered)


@pytest.fixture
def narrow_bands(monkeypatch):
    monkeypatch.setattr(intensity, "_BAND_VALUES", 100)


@pytest.mark.parametrize("dtype", (np.uint16, np.int16, np.uint32, np.float32))
def test_range_is_that_of_the_segmented_values(narrow_bands, dtype):
    values = np.random.default_rng(0).integers(0, 30_000, (70, 50, 3)).astype(dtype)
    for segmented in ((1,), (2, 0, 1)):
        found = intensity_range(plane_of(values, segmented))
        expected = percentiles(values[..., list(segmented)])
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", (bool, np.uint8))
def test_8_bits_need_no_range_and_are_not_read(dtype):
    plane = plane_of(np.zeros((5, 4, 1), dtype))
    object.__setattr__(plane, "_read", None)
    assert intensity_range(plane) is None


@pytest.mark.parametrize(
    ("pixels", "expected"),
    (
        ([0.2, 0.4], (0, 1)),
        ([0.2, np.nan, np.inf], (0, 1)),
        ([0.2, 0.3], (0.2001, 0.2999)),
        ([0.2, 0.2], (0, 1)),
        ([np.nan, np.inf], (0, 0)),
        ([0.0, 1.5], (0.0015, 1.4985)),
        ([-0.5, 0.5], (-0.499, 0.499)),
    ),
)
def test_range_of_floats(pixels, expected):
    plane = plane_of(np.array(pixels)[None, :, None])
    np.testing.assert_allclose(intensity_range(plane), expected)


def test_one_value_outside_shows_wherever_it_is(monkeypatch, narrow_bands):
    # Where only a sample is taken, all values decide whether floats are within [0, 1].
    monkeypatch.setattr(intensity, "_EXACT_VALUES", 10)
    values = np.full((40, 30, 1), 0.5)
    values[17, 3] = 1.5
    assert intensity_range(plane_of(values)) == (0.5, 0.5)


def test_only_the_sample_is_kept(monkeypatch):
    monkeypatch.setattr(intensity, "_EXACT_VALUES", 1 << 16)
    monkeypatch.setattr(intensity, "_BAND_VALUES", 1 << 18)
    band = np.zeros((4096, 4096, 1), np.uint16)[:64]
    plane = dataclasses.replace(
        plane_of(band),
        shape=(4096, 4096, 1),
        _read=lambda rows, columns: band[: rows.stop - rows.start, columns] + 7,
    )
    tracemalloc.start()
    try:
        assert intensity_range(plane) == (7, 7)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4e6  # Of the 32 MB of the plane.


@given(
    seed=st.integers(0, 99),
    limit=st.integers(100, 5000),
    channels=st.sampled_from([1, 3]),
)
def test_of_many_pixels_every_nth_is_taken(seed, limit, channels):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 65536, (61, 37, channels), dtype=np.uint16)
    # No channel stands for the others.
    values[..., 1:] //= 64
    stride = -(-values.size // limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intensity, "_EXACT_VALUES", limit)
        patch.setattr(intensity, "_BAND_VALUES", 37 * int(rng.integers(1, 20)))
        found = intensity_range(plane_of(values, tuple(range(channels))))
    np.testing.assert_allclose(
        found, percentiles(values.reshape(-1, channels)[::stride])
    )


def test_12_bits_divided_by_65535_keep_their_steps():
    counts = np.arange(4096, dtype=np.float32).reshape(64, 64)
    seen = preprocessing.to_uint8(to_rgb(counts / 65535))
    assert len(np.unique(seen)) == 256
    np.testing.assert_array_equal(seen, preprocessing.to_uint8(to_rgb(counts)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dark_8_bits_stay_dark_as_floats(dtype):
    counts = np.arange(20, dtype=np.uint8).reshape(4, 5)
    seen = to_rgb((counts / 255).astype(dtype))
    np.testing.assert_array_equal(preprocessing.to_uint8(seen)[..., 0], counts)


@given(
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([0.7, 1.0, 100.0, 5e4]),
    holes=st.booleans(),
    cuts=st.tuples(st.integers(1, 28), st.integers(1, 22)),
    colours=st.sampled_from([1, 3]),
    seed=st.integers(0, 999),
)
def test_regions_pasted_together_are_the_whole(
    dtype, scale, holes, cuts, colours, seed
):
    rng = np.random.default_rng(seed)
    values = rng.uniform(-0.1 * scale * (seed % 2), scale, (29, 23, colours))
    if np.issubdtype(dtype, np.integer):
        values = values.clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
    pixels = values.astype(dtype)
    if holes and pixels.dtype.kind == "f":
        chosen = rng.integers(0, pixels.size, 40)
        pixels.flat[chosen] = rng.choice([np.nan, np.inf, -np.inf], 40)
        pixels[:3, :3] = np.nan
    segmented = tuple(range(colours))
    value_range = intensity_range(plane_of(pixels, segmented))
    pasted = np.empty((29, 23, 3), np.float32)
    for rows in (slice(0, cuts[0]), slice(cuts[0], 29)):
        for columns in (slice(0, cuts[1]), slice(cuts[1], 23)):
            region = to_rgb(pixels[rows, columns], value_range=value_range)
            pasted[rows, columns] = region
    np.testing.assert_array_equal(pasted, to_rgb(pixels))


@pytest.mark.parametrize(
    "pixels",
    (
        np.array([[-128, 127]], np.int8),
        np.array([[-(2**63), 2**63 - 1]], np.int64),
        np.array([[0, 2**64 - 1]], np.uint64),
        np.array([[-65504, 65504]], np.float16),
        np.array([[-3e38, 3e38, 0]], np.float32),
        np.array([[-1.7e308, 1.7e308, 0]]),
        np.array([[-1.7e308, 1.7e308, 0]], np.longdouble),
        np.array([[5e-324, 1.0, 2.0]]),
    ),
)
def test_the_ends_of_a_type_stay_within_bounds(pixels):
    shades = to_rgb(pixels)[0, :, 0]
    assert shades.min() == 0 and shades.max() == 1
    np.testing.assert_array_equal(np.argsort(shades), np.argsort(pixels[0]))


def test_a_given_range_holds_for_8_bits_too():
    pixels = np.array([[50, 100, 150, 250]], np.uint8)
    shades = to_rgb(pixels, value_range=(100, 200))[0, :, 0]
    np.testing.assert_allclose(shades, [0, 0, 0.5, 1])
