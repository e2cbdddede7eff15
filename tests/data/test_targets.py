import numpy as np
import pytest
import scipy.ndimage

from nucseg_jax import config
from nucseg_jax.data import targets

LABELS = np.array([[0, 1, 1], [0, 0, 65535]], np.uint16)


@pytest.mark.parametrize("dtype", (np.uint8, np.uint16, np.int32))
def test_every_nucleus_is_foreground(dtype):
    mask = targets.foreground(LABELS.astype(dtype))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, [[0, 1, 1], [0, 0, 1]])


def test_renumbering_changes_nothing():
    renumbered = np.array([0, 7, 3])[np.array([[0, 1, 1], [0, 0, 2]])]
    np.testing.assert_array_equal(
        targets.foreground(renumbered), targets.foreground(LABELS)
    )


@pytest.mark.parametrize(("value", "expected"), ((0, 0.0), (3, 1.0)))
def test_images_without_and_full_of_nuclei(value, expected):
    mask = np.full((4, 5, 1), np.nan, np.float32)
    targets.make_targets(np.full((4, 5), value), ("foreground",), out=mask)
    np.testing.assert_array_equal(mask, np.full((4, 5, 1), expected))


def test_one_channel_for_each_name(monkeypatch):
    monkeypatch.setitem(targets.TARGETS, "half", lambda labels: labels / 2)
    stacked = np.full((2, 3, 2), np.nan, np.float32)
    targets.make_targets(LABELS, ("half", "foreground"), out=stacked)
    np.testing.assert_array_equal(stacked[..., 0], LABELS / 2)
    np.testing.assert_array_equal(stacked[..., 1], LABELS > 0)


def test_settings_know_every_target():
    assert tuple(targets.TARGETS) == config.TARGET_NAMES


TOUCHING = np.array([[1, 1, 1, 1, 2, 2, 2, 2]] * 6, np.uint16)


def test_touching_nuclei_are_parted_by_a_boundary_of_two_pixels():
    mask = targets.boundary(TOUCHING)
    np.testing.assert_array_equal(mask, [[0, 0, 0, 1, 1, 0, 0, 0]] * 6)


def test_a_nucleus_is_outlined_on_both_sides():
    labels = np.zeros((9, 9), np.uint16)
    labels[2:7, 2:7] = 7
    mask = targets.boundary(labels)
    assert not mask[3:6, 3:6].any() and mask[2, 2:7].all() and mask[1, 2:7].all()
    assert not mask[0].any()


@pytest.mark.parametrize("size", [3, 7, 21])
def test_every_nucleus_is_deepest_at_its_centre(size):
    labels = np.zeros((31, 31), np.uint16)
    labels[5 : 5 + size, 5 : 5 + size] = 3
    depth = targets.distance(labels)
    middle = 5 + size // 2
    assert depth.max() == depth[middle, middle] == 1
    assert ((depth > 0) == (labels > 0)).all()
    np.testing.assert_allclose(depth[5, middle], 2 / (size + 1), atol=1e-6)


def test_distance_is_that_to_another_nucleus_too():
    depth = targets.distance(TOUCHING)
    # The columns next to each other are outlines; the image's edge is none.
    np.testing.assert_allclose(depth[3], [1, 0.75, 0.5, 0.25, 0.25, 0.5, 0.75, 1])


def test_distance_equals_that_of_scipy():
    labels = np.zeros((60, 60), np.uint16)
    yy, xx = np.mgrid[:60, :60]
    for k, (y, x, r) in enumerate([(15, 15, 9), (40, 35, 14), (15, 34, 6)], 1):
        labels[(yy - y) ** 2 + (xx - x) ** 2 <= r * r] = k
    depth = targets.distance(labels)
    for k in range(1, 4):
        exact = scipy.ndimage.distance_transform_edt(labels == k)
        inside = labels == k
        # OpenCV measures with steps of 1, 1.4 and 2.2 and from the outline's pixels.
        np.testing.assert_allclose(
            depth[inside], (exact / exact.max())[inside], atol=0.12
        )


def test_contact_is_where_two_nuclei_are_near():
    labels = np.random.default_rng(0).integers(0, 20, (30, 40)).astype(np.uint16)
    labels[labels > 3] = 0
    labels[labels == 3] = 65535
    ids = np.unique(labels)
    near = [
        scipy.ndimage.distance_transform_edt(labels != id_) <= 2 for id_ in ids if id_
    ]
    expected = np.sum(near, axis=0) > 1
    found = targets.contact(labels)
    np.testing.assert_array_equal(found, expected)
    assert 0.1 < found.mean() < 0.9


@pytest.mark.parametrize("gap", [0, 1, 2, 3, 4])
def test_contact_is_a_band_that_narrows_as_nuclei_part(gap):
    row = np.repeat(np.array([1, 0, 2], np.uint16), [6, gap, 6])
    found = targets.contact(np.tile(row, (7, 1)))
    assert found[3].sum() == 4 - gap


def test_a_single_nucleus_has_no_contact():
    labels = np.zeros((9, 9), np.uint16)
    labels[2:7, 2:7] = 7
    assert not targets.contact(labels).any() and targets.boundary(labels).any()


@pytest.mark.parametrize("name", config.TARGET_NAMES)
@pytest.mark.parametrize("value", [0, 1])
def test_all_targets_are_defined_for_one_value_everywhere(name, value):
    result = targets.TARGETS[name](np.full((5, 6), value, np.uint16))
    expected = 0 if name in ("boundary", "contact") else value
    np.testing.assert_array_equal(result, np.full((5, 6), expected))


@pytest.mark.parametrize("name", config.TARGET_NAMES)
def test_ids_change_no_target(name):
    labels = np.array([[0, 1, 1, 2], [3, 1, 2, 2], [3, 3, 0, 2]], np.uint16)
    renumbered = np.array([0, 9, 400, 2], np.uint16)[labels]
    np.testing.assert_array_equal(
        targets.TARGETS[name](labels), targets.TARGETS[name](renumbered)
    )
