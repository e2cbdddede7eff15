"""The table of nuclei, by hand-made label images."""

import numpy as np
import pytest

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
COLUMNS = {"id", "y", "x", "area", "probability"}


@pytest.fixture
def table():
    probs = np.linspace(0, 0.95, LABELS.size, dtype=np.float32).reshape(LABELS.shape)
    return measure_nuclei(LABELS, probs)


def test_rows_are_the_labels_in_order(table):
    assert set(table) == COLUMNS
    np.testing.assert_array_equal(table["id"], [1, 2, 4])
    assert table["id"].dtype == np.int32


def test_area_counts_the_pixels(table):
    np.testing.assert_array_equal(table["area"], [3, 1, 6])
    assert table["area"].dtype == np.int64


def test_centroid_is_row_then_column(table):
    np.testing.assert_allclose(table["y"], [1 / 3, 3, 2])
    np.testing.assert_allclose(table["x"], [1 / 3, 1, 3.5])


def test_probability_is_the_mean_inside(table):
    steps = [[0, 1, 5], [16], [8, 9, 13, 14, 18, 19]]
    expected = [0.05 * np.mean(places) for places in steps]
    np.testing.assert_allclose(table["probability"], expected, rtol=1e-5)


def test_no_nuclei_give_empty_columns():
    empty = np.zeros((4, 5), np.int32)
    table = measure_nuclei(empty, np.zeros((4, 5), np.float32))
    assert set(table) == COLUMNS
    assert all(column.shape == (0,) for column in table.values())


def test_permuted_labels_permute_the_rows():
    rng = np.random.default_rng(0)
    probs = rng.random(LABELS.shape, np.float32)
    swapped = np.array([0, 4, 2, 3, 1], np.int32)[LABELS]
    first, second = measure_nuclei(LABELS, probs), measure_nuclei(swapped, probs)
    for name in COLUMNS - {"id"}:
        np.testing.assert_array_equal(first[name], second[name][[2, 1, 0]])
