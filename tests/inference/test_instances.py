"""Probabilities to label images, by hand-made examples."""

import numpy as np

from nucseg_jax.inference.instances import label_nuclei


def draw(picture):
    """Reads rows of digits as tenths: "059" is .0, .5, .9."""
    return np.array([[int(c) / 10 for c in row] for row in picture], np.float32)


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
