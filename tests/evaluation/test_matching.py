"""Overlaps of nuclei, and which of them match."""

import fractions
import time
import tracemalloc

import hypothesis
import numpy as np
import pytest
import scipy.optimize
from hypothesis import strategies as st

from nucseg_jax.evaluation.matching import count_matches, match_nuclei, overlap_table
from tests.evaluation.label_images import disc_grid, label_pairs, renumber
from tests.reference import instance_metrics as reference

TRUE = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 0, 7], [0, 0, 0, 0, 7]])
PRED = np.array([[0, 4, 4, 4, 0], [0, 4, 4, 0, 0], [2, 2, 0, 0, 7]])
THRESHOLDS = (0, 0.1, 0.25, 0.4, 0.5, 0.7, 0.95)


def pairs_of(table, values):
    """Truth's and prediction's id -> a value of each overlapping pair."""
    true_ids = table.true_ids[table.rows].tolist()
    pred_ids = table.pred_ids[table.columns].tolist()
    ids = zip(true_ids, pred_ids, strict=True)
    return dict(zip(ids, values.tolist(), strict=True))


def matches(table, threshold):
    """Truth's -> prediction's ids, each of them once."""
    pairs = match_nuclei(table, threshold=threshold)
    matched = dict(list(pairs_of(table, table.iou))[index] for index in pairs)
    assert len(set(matched.values())) == len(matched) == len(pairs)
    return matched


def two_bars(intersection, union):
    """Two label images with one nucleus each, whose IoU is intersection / union."""
    x = np.arange(union + 1)[None]
    true_labels = (x < (union + intersection + 1) // 2).astype(np.int32)
    pred_labels = (x >= (union - intersection + 1) // 2) & (x < union)
    return true_labels, pred_labels.astype(np.int32)


def test_overlap_table_of_two_small_images():
    table = overlap_table(TRUE, PRED)
    assert dict(zip(table.true_ids, table.true_areas, strict=True)) == {1: 6, 7: 2}
    assert dict(zip(table.pred_ids, table.pred_areas, strict=True)) == {
        2: 2,
        4: 5,
        7: 1,
    }
    assert pairs_of(table, table.intersections) == {(1, 4): 4, (7, 7): 1}
    assert pairs_of(table, table.iou) == {(1, 4): 4 / 7, (7, 7): 1 / 2}
    assert table.intersections.dtype == table.true_areas.dtype == np.int64


@hypothesis.given(label_pairs())
def test_overlaps_are_those_of_the_slow_version(pair):
    table = overlap_table(*pair)
    for ids, areas, labels in zip(
        (table.true_ids, table.pred_ids),
        (table.true_areas, table.pred_areas),
        pair,
        strict=True,
    ):
        assert ids.tolist() == reference.ids_of(labels)
        assert areas.tolist() == [int((labels == i).sum()) for i in ids]
    assert pairs_of(table, table.iou) == {
        (i, j): float(iou)
        for i, row in reference.all_ious(*pair).items()
        for j, iou in row.items()
        if iou
    }


@hypothesis.given(label_pairs(), st.integers(0, 99))
def test_ids_may_be_any_with_gaps(pair, seed):
    table = overlap_table(*pair)
    renumbered = overlap_table(renumber(pair[0], seed), renumber(pair[1], seed + 1))
    for name in ("true_areas", "pred_areas", "intersections", "iou"):
        expected = np.sort(getattr(table, name))
        np.testing.assert_array_equal(np.sort(getattr(renumbered, name)), expected)


@pytest.mark.parametrize(
    ("dtype", "top"),
    [
        (np.uint8, 2**8 - 1),
        (np.uint16, 2**16 - 1),
        (np.int32, 2**31 - 1),
        (np.uint32, 2**31),
        (np.uint32, 2**32 - 1),
        (np.int64, 2**32 - 1),
    ],
)
def test_the_largest_ids_stay_apart(dtype, top):
    true_labels = np.array([[top, top, top - 1, 0, 1]], dtype)
    pred_labels = np.array([[top - 1, top - 1, top, top, 0]], dtype)
    table = overlap_table(true_labels, pred_labels)
    assert table.true_ids.tolist() == [1, top - 1, top]
    assert table.pred_ids.tolist() == [top - 1, top]
    overlaps = {(top, top - 1): 2, (top - 1, top): 1}
    assert pairs_of(table, table.intersections) == overlaps


def test_layout_in_memory_and_dtype_play_no_part():
    table = overlap_table(np.asfortranarray(TRUE.astype(np.uint16)), PRED[:, :])
    assert pairs_of(table, table.iou) == {(1, 4): 4 / 7, (7, 7): 1 / 2}


@pytest.mark.parametrize(
    ("true_labels", "pred_labels", "message"),
    [
        (TRUE, PRED[:2], r"\(3, 5\) true, \(2, 5\) predicted"),
        (TRUE, PRED[..., None], "differ in shape"),
        (TRUE[None], PRED[None], "not int64 of shape"),
        (TRUE, PRED.astype(np.float32), "not float32"),
        (TRUE > 0, PRED, "not bool"),
        (TRUE, -PRED, "from -7 to 0"),
        (TRUE.astype(np.int64) << 31, PRED, "lie between 0 and 4294967295"),
    ],
)
def test_what_is_no_label_image_is_refused(true_labels, pred_labels, message):
    with pytest.raises(ValueError, match=message):
        overlap_table(true_labels, pred_labels)


@pytest.mark.parametrize("threshold", [-0.1, 1.01, float("nan")])
def test_a_threshold_that_is_no_iou_is_refused(threshold):
    with pytest.raises(ValueError, match="must lie in"):
        match_nuclei(overlap_table(TRUE, PRED), threshold=threshold)


@hypothesis.given(label_pairs(), st.sampled_from(THRESHOLDS))
def test_matches_are_the_best_of_all_matchings(pair, threshold):
    found = matches(overlap_table(*pair), threshold)
    ious = reference.all_ious(*pair)
    exact = fractions.Fraction(str(threshold))
    best = reference.best_matching(ious, exact)
    assert len(found) == len(best)
    assert reference.sum_iou(found, ious) == reference.sum_iou(best, ious)
    assert all(ious[i][j] > exact for i, j in found.items())


@hypothesis.given(label_pairs(), st.floats(0.5, 1))
def test_from_a_half_on_matches_are_those_of_the_hungarian_method(pair, threshold):
    ious = reference.all_ious(*pair)
    num_pred = len(reference.ids_of(pair[1]))
    matrix = np.zeros((len(ious), num_pred))
    for matrix_row, row in zip(matrix, ious.values(), strict=True):
        matrix_row[:] = [float(iou) for iou in row.values()]
    chosen = scipy.optimize.linear_sum_assignment(matrix, maximize=True)
    assert len(matches(overlap_table(*pair), threshold)) == (
        (matrix[chosen] > threshold).sum()
    )


def run_lengths(*runs):
    """A row of pixels, from pairs of length and id."""
    return np.concatenate([np.full(length, id_) for length, id_ in runs])[None]


def test_below_a_half_the_most_nuclei_are_matched():
    """1 fits 6 best, better than both matches together, but would leave 2 alone."""
    table = overlap_table(
        run_lengths((12, 1), (12, 2)), run_lengths((3, 5), (13, 6), (8, 0))
    )
    ious = {(1, 5): 3 / 12, (1, 6): 9 / 16, (2, 6): 4 / 21}
    assert pairs_of(table, table.iou) == ious
    assert matches(table, 0.15) == {1: 5, 2: 6}
    assert matches(table, 0.2) == {1: 6}
    assert matches(table, 0.5) == {1: 6}
    assert matches(table, 0.6) == {}


def test_below_a_half_the_higher_sum_of_iou_decides():
    """1 and 2 compete for 6."""
    table = overlap_table(run_lengths((5, 1), (5, 2)), run_lengths((2, 0), (8, 6)))
    assert pairs_of(table, table.iou) == {(1, 6): 3 / 10, (2, 6): 5 / 8}
    assert matches(table, 0.1) == {2: 6}


def test_competitors_without_a_partner_stay_unmatched():
    """Three true nuclei below one predicted one; beside it the other way round."""
    true_labels = run_lengths((3, 1), (4, 2), (3, 3), (10, 4))
    pred_labels = run_lengths((10, 5), (3, 6), (3, 7), (4, 8))
    assert matches(overlap_table(true_labels, pred_labels), 0.1) == {2: 5, 4: 8}


@pytest.mark.parametrize("percent", [*range(5, 100, 5), 1, 99])
@pytest.mark.parametrize("factor", [1, 3, 7])
def test_an_iou_equal_to_the_threshold_is_no_match(percent, factor):
    table = overlap_table(*two_bars(percent * factor, 100 * factor))
    assert len(matches(table, percent / 100)) == 0
    above = overlap_table(*two_bars(percent * factor + 1, 100 * factor))
    assert len(matches(above, percent / 100)) == 1


def test_equal_nuclei_match_below_threshold_1_only():
    table = overlap_table(TRUE, TRUE)
    assert matches(table, 0.999) == {1: 1, 7: 7}
    assert matches(table, 1) == {}


@hypothesis.given(label_pairs())
def test_a_higher_threshold_matches_no_more(pair):
    tp = count_matches(overlap_table(*pair), THRESHOLDS)
    assert tp.dtype == np.int64 and (np.diff(tp) <= 0).all()


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (1, 1), (3, 4)])
def test_nothing_matches_nothing(shape):
    empty = np.zeros(shape, np.int32)
    table = overlap_table(empty, empty)
    assert table.true_ids.size == table.pred_ids.size == table.iou.size == 0
    assert count_matches(table, THRESHOLDS).tolist() == [0] * len(THRESHOLDS)


def test_a_megapixel_with_a_thousand_nuclei_takes_milliseconds():
    true_labels = disc_grid(1024, 32)
    pred_labels = renumber(disc_grid(1024, 32, shift=(3, 2)), seed=0).astype(np.int32)
    table = overlap_table(true_labels, pred_labels)
    assert table.true_ids.size == 1024

    def elapsed():
        start = time.thread_time()  # Other programs may keep the cores busy.
        count_matches(overlap_table(true_labels, pred_labels), THRESHOLDS)
        return time.thread_time() - start

    assert min(elapsed() for _ in range(7)) < 0.05


def test_many_nuclei_that_hang_together_need_little_memory():
    """Each of 3,600 overlaps four: a matrix of all would be 100 MB."""
    grid = np.kron(np.arange(1, 3601).reshape(60, 60), np.ones((6, 6), np.int32))
    grid = grid.astype(np.int32)
    table = overlap_table(grid, np.roll(grid, (2, 2), (0, 1)))
    tracemalloc.start()
    pairs = match_nuclei(table, threshold=0.1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pairs) == 3600 and peak < 20e6
