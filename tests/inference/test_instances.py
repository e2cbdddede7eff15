"""Probabilities to label images, by hand-made examples."""

import dataclasses
import time

import cv2
import numpy as np
import pytest
import skimage.draw
import skimage.measure
import skimage.segmentation
from hypothesis import given, settings
from hypothesis import strategies as st

from nucseg_jax.config import TARGET_NAMES, DecodingConfig
from nucseg_jax.data.targets import make_targets
from nucseg_jax.inference import instances
from tests.helpers import same_partition
from tests.inference.test_measurements import nuclei_like

PLAIN = DecodingConfig(method="components", min_area=0, max_hole=0)


def draw(picture):
    """Reads rows of digits as tenths: "059" is .0, .5, .9."""
    return np.array([[int(c) / 10 for c in row] for row in picture], np.float32)


def label_nuclei(probs, **changes):
    """Labels the connected parts of the foreground."""
    decoding = dataclasses.replace(PLAIN, **changes)
    return instances.label_nuclei(probs[..., None], ("foreground",), decoding)


def discs(*circles, shape=(64, 64)):
    """Draws nuclei (row, column, radius); later ones do not cover earlier ones."""
    labels = np.zeros(shape, np.int32)
    for k, (row, column, radius) in enumerate(circles, 1):
        inside = skimage.draw.disk((row, column), radius, shape=shape)
        labels[inside] = np.where(labels[inside], labels[inside], k)
    return labels


def perfect(labels, names=TARGET_NAMES):
    probs = np.empty((*labels.shape, len(names)), np.float32)
    make_targets(labels, names, out=probs)
    return probs


def test_connected_pixels_are_one_nucleus():
    labels = label_nuclei(draw(["99000", "90077", "00077", "60000"]))
    expected = [[1, 1, 0, 0, 0], [1, 0, 0, 2, 2], [0, 0, 0, 2, 2], [3, 0, 0, 0, 0]]
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.int32


def test_pixels_that_meet_at_a_corner_are_two_nuclei():
    labels = label_nuclei(draw(["90", "09"]))
    np.testing.assert_array_equal(labels, [[1, 0], [0, 2]])


def test_the_threshold_itself_is_foreground():
    probs = np.array([[0.25, 0, 0.5, 0, 0.75]], np.float32)
    for threshold, count in ((0.2, 3), (0.25, 3), (0.5, 2), (0.75, 1), (0.8, 0)):
        assert label_nuclei(probs, threshold=threshold).max() == count


def test_a_hole_belongs_to_no_nucleus():
    labels = label_nuclei(draw(["999", "909", "999"]))
    np.testing.assert_array_equal(labels, [[1, 1, 1], [1, 0, 1], [1, 1, 1]])


def test_all_foreground_is_one_and_none_is_zero():
    assert (label_nuclei(np.ones((3, 4), np.float32)) == 1).all()
    assert (label_nuclei(np.zeros((3, 4), np.float32)) == 0).all()


def test_many_nuclei_are_numbered_without_gaps():
    probs = np.zeros((300, 300), np.float32)
    probs[::2, ::2] = 1
    labels = label_nuclei(probs)
    np.testing.assert_array_equal(np.unique(labels), np.arange(150 * 150 + 1))


TOUCHING = discs((20, 20, 9), (20, 36, 8), (40, 30, 12), (55, 8, 6))


@pytest.mark.parametrize(
    "names",
    [TARGET_NAMES, TARGET_NAMES[:3], TARGET_NAMES[:2], ("foreground", "contact")],
)
def test_what_was_learned_from_label_images_gives_them_back(names):
    """Touching nuclei are parted where the truth parts them, up to their outlines."""
    labels = instances.label_nuclei(perfect(TOUCHING, names), names, DecodingConfig())
    assert labels.max() == 4
    for k in range(1, 5):
        found = np.bincount(labels[TOUCHING == k]).argmax()
        assert found > 0
        overlap = np.sum((labels == found) & (TOUCHING == k))
        assert overlap / np.sum((labels == found) | (TOUCHING == k)) > 0.9


# A contact as thin as a pixel, and one as wide as its target.
@pytest.mark.parametrize(("smoothing", "width"), [(1.0, 1), (1.0, 4), (3.0, 4)])
def test_a_contact_parts_what_is_deep_on_both_sides(smoothing, width):
    names = ("foreground", "distance", "contact")
    probs = np.zeros((30, 40, 3), np.float32)
    probs[5:25, 5:35, :2] = 0.9
    decoding = DecodingConfig(smoothing=smoothing)
    assert instances.label_nuclei(probs, names, decoding).max() == 1
    probs[5:25, 20 : 20 + width, 2] = 1
    labels = instances.label_nuclei(probs, names, decoding)
    assert labels.max() == 2
    assert (labels[5:25, 19] != labels[5:25, 20 + width]).all()


def test_foreground_alone_is_parted_by_its_shape():
    labels = instances.label_nuclei(
        perfect(TOUCHING, ("foreground",)), ("foreground",), DecodingConfig()
    )
    centres = [labels[20, 20], labels[20, 36], labels[40, 30], labels[55, 8]]
    assert len(set(centres)) == 4 and min(centres) > 0


def rectangle(height, width, top=20, left=20):
    mask = np.zeros((100, 120, 1), np.float32)
    mask[top : top + height, left : left + width] = 1
    return mask


ROW, COLUMN = np.mgrid[:100, :120]
ELLIPSE = (((ROW - 50) / 10) ** 2 + ((COLUMN - 60) / 40) ** 2 <= 1)[..., None]


@pytest.mark.parametrize(
    "foreground",
    [rectangle(20, 60), rectangle(60, 20), rectangle(9, 70), ELLIPSE.astype(np.float32)]
    + [rectangle(15, 60, top=0), rectangle(30, 30, top=0, left=0)],
)
def test_a_long_nucleus_is_one(foreground):
    labels = instances.label_nuclei(foreground, ("foreground",), DecodingConfig())
    assert labels.max() == 1


def test_components_part_nothing():
    decoding = DecodingConfig(method="components")
    labels = instances.label_nuclei(perfect(TOUCHING), TARGET_NAMES, decoding)
    assert labels[20, 20] == labels[20, 36] and labels.max() < 4


def test_a_nucleus_without_a_marker_is_not_lost():
    probs = perfect(discs((20, 20, 8), (50, 50, 8)))
    probs[40:, 40:, 2] = 0
    labels = instances.label_nuclei(probs, TARGET_NAMES, DecodingConfig())
    assert labels.max() == 2 and labels[50, 50] > 0


@settings(deadline=None)
@given(st.integers(0, 2**16), st.floats(0.3, 0.7), st.floats(0, 0.05))
def test_what_is_not_flooded_is_what_the_flood_would_give(seed, threshold, height):
    depth = np.random.default_rng(seed).random((60, 70), np.float32)
    depth = cv2.GaussianBlur(depth, (0, 0), 2)
    depth = (depth - depth.min()) / (depth.max() - depth.min())
    foreground = depth > threshold
    markers = instances._find_peaks(
        depth, depth > threshold + 0.1, DecodingConfig(peak_distance=3), height=height
    )
    labels = instances._flood(foreground, depth, markers)
    flooded = skimage.segmentation.watershed(-depth, markers, mask=foreground)
    # Parts without a marker are not flooded; they are nuclei all the same.
    np.testing.assert_array_equal(labels[flooded > 0], flooded[flooded > 0])
    alone = np.where(flooded > 0, 0, labels)
    unmarked = skimage.measure.label(foreground & (flooded == 0), connectivity=1)
    assert same_partition(alone, unmarked)
    assert not alone.any() or alone[alone > 0].min() > markers.max()


@pytest.mark.parametrize(("max_hole", "filled"), [(0, False), (8, False), (9, True)])
def test_holes_are_filled_up_to_their_size(max_hole, filled):
    mask = np.ones((20, 20), np.float32)
    mask[0] = mask[-1] = 0
    mask[8:11, 8:11] = 0
    assert (label_nuclei(mask, max_hole=max_hole)[9, 9] > 0) == filled


@pytest.mark.parametrize(("min_area", "count"), [(0, 3), (4, 3), (5, 2), (10, 1)])
def test_small_nuclei_are_dropped(min_area, count):
    mask = np.zeros((20, 20), np.float32)
    mask[1:3, 1:3] = mask[6:9, 6:9] = mask[12:18, 2:8] = 1
    labels = label_nuclei(mask, min_area=min_area)
    np.testing.assert_array_equal(np.unique(labels), np.arange(count + 1))


@pytest.mark.parametrize(
    ("min_probability", "count"), [(0, 3), (0.7, 3), (0.71, 2), (0.875, 2), (0.9, 1)]
)
def test_nuclei_of_a_low_mean_probability_are_dropped(min_probability, count):
    """The mean decides, not the best pixel."""
    foreground = np.zeros((20, 20), np.float32)
    foreground[1:5, 1:5] = 0.75
    foreground[1:5, 3:5] = 1
    foreground[8:12, 1:5] = 0.9375
    foreground[14:18, 1:5] = [0.5, 0.5, 0.8125, 1]
    labels = label_nuclei(foreground, min_probability=min_probability)
    np.testing.assert_array_equal(np.unique(labels), np.arange(count + 1))
    assert labels[9, 2] > 0


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**16),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(1, 3),
)
def test_any_probabilities_give_a_sound_label_image(seed, shape, num_targets):
    rng = np.random.default_rng(seed)
    probs = rng.random((*shape, num_targets), np.float32)
    decoding = DecodingConfig(min_area=3, max_hole=2)
    labels = instances.label_nuclei(probs, TARGET_NAMES[:num_targets], decoding)
    assert labels.dtype == np.int32 and labels.shape == shape
    np.testing.assert_array_equal(
        np.unique(np.append(labels, 0)), np.arange(labels.max() + 1)
    )
    assert np.bincount(labels.ravel())[1:].min(initial=3) >= 3


@pytest.mark.parametrize("degrees", [0, 20, 45, 70, 90])
@pytest.mark.parametrize("method", ["components", "watershed"])
def test_a_gap_of_one_pixel_is_no_hole_in_whatever_direction(degrees, method):
    disc = skimage.draw.disk((30, 30), 22)
    mask = np.zeros((60, 60), np.float32)
    mask[disc] = 1
    along, across = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    first, last = np.rint(30 + 28 * np.outer([-1, 1], [along, across])).astype(int)
    mask[skimage.draw.line(*first, *last)] = 0
    assert label_nuclei(mask, method=method).max() == 2


@pytest.mark.parametrize("apart", [18, 20])
def test_nuclei_of_foreground_alone_part_alike_at_any_scale(apart):
    """Drawn with 4 and with a quarter of the pixels, and named by the scale."""
    counts = set()
    for scale in (0.25, 0.5, 1, 2, 4):
        rows, columns = (np.mgrid[: 128 / scale, : 128 / scale] + 0.5) * scale
        distances = [np.hypot(rows - 64, columns - 64 - k * apart / 2) for k in (-1, 1)]
        probs = np.float32(np.min(distances, axis=0) < 12)[..., None]
        labels = instances.label_nuclei(
            probs, ("foreground",), DecodingConfig(), scale=scale
        )
        counts.add(int(labels.max()))
    assert counts == {2}


def test_a_notch_at_the_edge_is_no_hole():
    mask = np.ones((20, 20), np.float32)
    mask[8:11, :3] = 0
    mask[0, 5] = 0
    np.testing.assert_array_equal(label_nuclei(mask, max_hole=40), mask)


@pytest.mark.parametrize("num_targets", [1, 2, 3])
@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("shape", [(30, 40), (6, 6), (1, 1)])
def test_one_value_everywhere(num_targets, value, shape):
    """Also of images smaller than a hole."""
    probs = np.full((*shape, num_targets), value, np.float32)
    names = TARGET_NAMES[:num_targets]
    labels = instances.label_nuclei(probs, names, DecodingConfig(min_area=0))
    np.testing.assert_array_equal(labels, np.full(shape, value))


@pytest.mark.slow
def test_a_megapixel_of_1000_nuclei_takes_less_than_the_promised_time():
    probs = perfect(nuclei_like(1000, 1000))
    decoding = DecodingConfig(min_probability=0.5)

    def seconds() -> float:
        start = time.thread_time()
        instances.label_nuclei(probs, TARGET_NAMES, decoding)
        return time.thread_time() - start

    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        assert min(seconds() for _ in range(5)) < 0.15
    finally:
        cv2.setNumThreads(threads)
