"""The table of nuclei, against scikit-image's and by hand-made label images."""

import time

import numpy as np
import pytest
import scipy.ndimage
import skimage.measure
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nucseg_jax.inference.measurements import measure_nuclei

LABELS = np.array(
    [
        [1, 1, 0, 0, 0],
        [1, 0, 0, 4, 4],
        [0, 0, 0, 4, 4],
        [0, 2, 0, 4, 4],
    ],
    np.int32,
)
COLUMNS = [
    "id",
    "y",
    "x",
    "unit",
    "area",
    "perimeter",
    "eccentricity",
    "solidity",
    "orientation",
    "probability",
    "touches_border",
]
# Our column -> scikit-image's, where it is one.
SAME = {
    "id": "label",
    "y": "centroid-0",
    "x": "centroid-1",
    "area": "area",
    "perimeter": "perimeter",
    "eccentricity": "eccentricity",
    "solidity": "solidity",
}


def zeros(labels):
    return np.zeros(labels.shape, np.float32)


def nuclei_like(num_nuclei: int, side: int, radius: int = 11) -> np.ndarray:
    """Wobbly nuclei, many of which touch; int32 [side, side]."""
    rng = np.random.default_rng(0)
    seeds = np.zeros((side, side), np.int32)
    seeds[tuple(rng.integers(0, side, (2, num_nuclei)))] = 1 + np.arange(num_nuclei)
    distance, nearest = scipy.ndimage.distance_transform_edt(
        seeds == 0, return_indices=True
    )
    wobble = 20 * scipy.ndimage.gaussian_filter(rng.normal(size=seeds.shape), 3)
    return np.where(distance < radius + wobble, seeds[tuple(nearest)], 0)


@pytest.fixture(scope="module")
def nuclei():
    return nuclei_like(100, 320)


def assert_equals_skimage(labels):
    table = measure_nuclei(labels, zeros(labels))
    properties = [name.split("-")[0] for name in SAME.values()] + ["orientation"]
    expected = skimage.measure.regionprops_table(labels, properties=properties)
    for ours, theirs in SAME.items():
        np.testing.assert_allclose(
            table[ours], expected[theirs], rtol=1e-9, atol=1e-6, err_msg=ours
        )
    # Of a round nucleus, rounding decides. An axis has no head: 90 degrees are -90.
    long = table["eccentricity"] > 0.1
    turned = table["orientation"] - np.degrees(expected["orientation"])
    np.testing.assert_allclose(np.sin(np.radians(turned[long])), 0, atol=1e-6)


def test_nuclei_are_measured_as_by_scikit_image(nuclei):
    assert len(np.unique(nuclei)) > 90
    assert_equals_skimage(nuclei)


@settings(deadline=None, max_examples=200)
@given(
    hnp.arrays(
        np.int32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
        elements=st.sampled_from([0, 1, 2, 70_000]),
    ).filter(np.any)
)
def test_any_labels_are_measured_as_by_scikit_image(labels):
    """Nuclei in parts, with holes, of one pixel, in contact: all alike."""
    assert_equals_skimage(labels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, bool])
def test_intensities_and_probability_are_means_inside(nuclei, dtype):
    rng = np.random.default_rng(0)
    pixels = (rng.random((*nuclei.shape, 3)) * 250).astype(dtype)
    probs = rng.random((*nuclei.shape, 2), np.float32)
    table = measure_nuclei(nuclei, probs, pixels)
    exact = np.concatenate([pixels, probs[..., :1]], axis=2, dtype=np.float64)
    ids = np.arange(1, nuclei.max() + 1)
    expected = [scipy.ndimage.mean(exact[..., c], nuclei, ids) for c in range(4)]
    names = [f"intensity_mean_{c}" for c in range(3)] + ["probability"]
    found = np.isin(ids, table["id"])
    for name, column in zip(names, expected, strict=True):
        np.testing.assert_allclose(table[name], column[found], rtol=1e-12)


def test_one_pixel_that_is_no_number_spoils_one_nucleus_only():
    pixels = np.ones(LABELS.shape)
    pixels[0, 0] = np.nan
    table = measure_nuclei(LABELS, zeros(LABELS), pixels)
    np.testing.assert_array_equal(table["intensity_mean_0"], [np.nan, 1, 1])


def test_columns_keep_their_order_and_channels_their_names():
    pixels = np.zeros((*LABELS.shape, 2), np.uint16)
    table = measure_nuclei(LABELS, zeros(LABELS), pixels, channels=["DAPI", "γH2AX"])
    intensities = ["intensity_mean_DAPI", "intensity_mean_γH2AX"]
    assert list(table) == [*COLUMNS[:9], *intensities, *COLUMNS[9:]]
    assert list(measure_nuclei(LABELS, zeros(LABELS))) == COLUMNS
    gray = measure_nuclei(LABELS, zeros(LABELS), pixels[..., 0])
    assert "intensity_mean_0" in gray


def test_rows_are_the_labels_in_order():
    table = measure_nuclei(LABELS, zeros(LABELS))
    np.testing.assert_array_equal(table["id"], [1, 2, 4])
    np.testing.assert_array_equal(table["area"], [3, 1, 6])
    np.testing.assert_allclose(table["y"], [1 / 3, 3, 2])
    np.testing.assert_allclose(table["x"], [1 / 3, 1, 3.5])
    assert table["id"].dtype == np.int32
    assert table["area"].dtype == np.int64


def test_orientation_turns_counter_clockwise_from_upright():
    upright, flat = np.ones((9, 3), np.int32), np.ones((3, 9), np.int32)
    falling = np.eye(9, dtype=np.int32)
    angles = [
        measure_nuclei(labels, zeros(labels))["orientation"][0]
        for labels in (upright, falling, flat, falling[::-1])
    ]
    np.testing.assert_allclose(np.abs(angles), [0, 45, 90, 45])
    assert angles[1] > 0 > angles[3]


def test_a_known_pixel_size_turns_lengths_to_micrometres(nuclei):
    pixels = measure_nuclei(nuclei, zeros(nuclei))
    table = measure_nuclei(nuclei, zeros(nuclei), pixel_size=0.25)
    assert set(pixels["unit"]) == {"px"} and set(table["unit"]) == {"um"}
    scale = {"area": 0.25**2, "perimeter": 0.25}
    for name in set(COLUMNS) - {"unit"}:
        np.testing.assert_allclose(table[name], pixels[name] * scale.get(name, 1))


def test_border_is_that_of_the_whole_image():
    whole = measure_nuclei(LABELS, zeros(LABELS))
    np.testing.assert_array_equal(whole["touches_border"], [True, True, True])
    size = {"image_shape": (30, 40)}
    for (top, left), expected in {
        (10, 10): [False, False, False],
        (0, 10): [True, False, False],
        (10, 0): [True, False, False],
        (26, 10): [False, True, True],
        (10, 35): [False, False, True],
    }.items():
        table = measure_nuclei(LABELS, zeros(LABELS), top=top, left=left, **size)
        np.testing.assert_array_equal(table["touches_border"], expected)


def test_windows_give_what_the_whole_image_gives(nuclei):
    rng = np.random.default_rng(0)
    probs, pixels = (rng.random(nuclei.shape, np.float32) for _ in range(2))
    whole = measure_nuclei(nuclei, probs, pixels)
    top, left = 70, 40
    part = np.s_[top:260, left:300]
    inside = [
        region.label
        for region in skimage.measure.regionprops(nuclei)
        if top <= region.bbox[0] and left <= region.bbox[1]
        if region.bbox[2] <= 260 and region.bbox[3] <= 300
    ]
    assert len(inside) > 20
    table = measure_nuclei(
        np.where(np.isin(nuclei, inside), nuclei, 0)[part],
        probs[part],
        pixels[part],
        top=top,
        left=left,
        image_shape=nuclei.shape,
    )
    rows = np.isin(whole["id"], inside)
    for name, column in whole.items():
        if name == "unit":
            continue
        np.testing.assert_allclose(table[name], column[rows], rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("shape", [(4, 5), (1, 1), (0, 5), (4, 0)])
def test_no_nuclei_give_empty_columns_of_the_same_types(shape):
    empty = np.zeros(shape, np.int32)
    pixels = np.zeros((*shape, 2), np.uint16)
    table = measure_nuclei(empty, zeros(empty), pixels)
    full = measure_nuclei(LABELS, zeros(LABELS), np.zeros((*LABELS.shape, 2)))
    assert list(table) == list(full)
    for name, column in table.items():
        assert column.shape == (0,)
        assert column.dtype == full[name].dtype, name


def test_permuted_labels_permute_the_rows():
    rng = np.random.default_rng(0)
    probs = rng.random(LABELS.shape, np.float32)
    swapped = np.array([0, 4, 2, 3, 1], np.int32)[LABELS]
    first, second = measure_nuclei(LABELS, probs), measure_nuclei(swapped, probs)
    for name in set(COLUMNS) - {"id"}:
        np.testing.assert_array_equal(first[name], second[name][[2, 1, 0]])


def test_negative_labels_are_background():
    """As the lines between nuclei that `cv2.watershed` draws."""
    labels = np.zeros((30, 30), np.int32)
    labels[2:8, 2:8], labels[12:22, 12:22] = 1, 2
    expected = measure_nuclei(labels, zeros(labels))
    labels[11, 10:25] = -1
    for name, column in measure_nuclei(labels, zeros(labels)).items():
        np.testing.assert_array_equal(column, expected[name])


def test_labels_that_are_no_integers_and_pixels_without_size_are_refused(nuclei):
    with pytest.raises(ValueError, match="labels are float64; expected integers"):
        measure_nuclei(nuclei.astype(float), zeros(nuclei))
    for pixel_size in (-1.0, np.nan):
        with pytest.raises(ValueError, match="pixel_size is"):
            measure_nuclei(nuclei, zeros(nuclei), pixel_size=pixel_size)


def test_arrays_are_left_as_they_are(nuclei):
    labels, probs = nuclei.copy(), np.ones(nuclei.shape, np.float32)
    measure_nuclei(labels, probs, probs)
    np.testing.assert_array_equal(labels, nuclei)
    assert (probs == 1).all()


@pytest.mark.parametrize(
    ("probs", "pixels", "channels", "message"),
    [
        ((4, 4), None, (), r"probs are \(4, 4\).*\(4, 5\)"),
        ((4, 5), (4, 6, 1), (), r"0 are \(4, 6\)"),
        ((4, 5), (4, 5, 2), ("DAPI",), "1 channel names for 2 channels"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(probs, pixels, channels, message):
    pixels = None if pixels is None else np.zeros(pixels)
    with pytest.raises(ValueError, match=message):
        measure_nuclei(LABELS, np.zeros(probs), pixels, channels=channels)


def test_a_megapixel_of_1000_nuclei_takes_less_than_the_promised_time():
    labels = nuclei_like(1000, 1000)
    pixels = np.zeros((*labels.shape, 3), np.uint16)

    def seconds() -> float:
        start = time.thread_time()
        measure_nuclei(labels, zeros(labels), pixels)
        return time.thread_time() - start

    assert min(seconds() for _ in range(3)) < 0.15
