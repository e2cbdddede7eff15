import numpy as np
import pytest

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
