"""Instance metrics: hand-made cases, a slow version, and what must not matter."""

import fractions
import pathlib

import hypothesis
import numpy as np
import pytest
import skimage.measure
from hypothesis import strategies as st

from nucseg_jax.data import images
from nucseg_jax.evaluation.instance_metrics import (
    THRESHOLDS,
    InstanceCounts,
    average_precision,
)
from tests.evaluation.label_images import disc_grid, label_pairs, renumber
from tests.reference import instance_metrics as reference

SAMPLE = pathlib.Path(__file__).parents[2] / "experiments" / "sample_data"
ARRAYS = ("tp", "fp", "fn", "average_precision", "f1", "precision", "recall")

EMPTY = np.zeros((4, 10), np.int32)
BAR = EMPTY.copy()
BAR[1] = 3  # One nucleus of ten pixels.


def bars(*lengths):
    """One nucleus a row, of so many pixels."""
    x = np.arange(10)[None]
    ids = np.arange(1, len(lengths) + 1)[:, None]
    return np.where(x < np.array(lengths)[:, None], ids, 0).astype(np.int32)


def values_of(counts):
    """All values of one image by name, arrays as lists."""
    values = {name: getattr(counts, name).tolist() for name in ARRAYS}
    scalars = ("num_true", "num_pred", "count_error", "signed_count_error")
    values |= {name: getattr(counts, name) for name in scalars}
    return values | counts.ratios()


def assert_same(first, second):
    for (name, value), other in zip(
        values_of(first).items(), values_of(second).values(), strict=True
    ):
        # A sum of IoU depends on its order in the last bit.
        np.testing.assert_allclose(value, other, rtol=1e-12, err_msg=name)


def test_thresholds_are_those_of_the_data_science_bowl():
    assert list(THRESHOLDS) == [
        0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95,
    ]  # fmt: skip


def test_average_precision_of_a_hand_made_case():
    """IoU of 1, .8 and .5, then one nucleus that is missed and one that is false."""
    true_labels, pred_labels = bars(10, 8, 10, 6, 0), bars(10, 10, 5, 0, 4)
    ap = average_precision(true_labels, pred_labels, [0, 0.49, 0.5, 0.79, 0.8, 0.99])
    expected = [3 / 5, 3 / 5, 2 / 6, 2 / 6, 1 / 7, 1 / 7]
    np.testing.assert_allclose(ap, expected, rtol=1e-15)
    assert ap.dtype == np.float64


def test_all_metrics_of_that_case():
    counts = InstanceCounts.from_labels(bars(10, 8, 10, 6, 0), bars(10, 10, 5, 0, 4))
    assert (counts.num_true, counts.num_pred) == (4, 4)
    assert counts.tp.tolist() == [2] * 6 + [1] * 4
    assert counts.fp.tolist() == counts.fn.tolist() == [2] * 6 + [3] * 4
    ratios = counts.ratios()
    assert ratios["ap50"] == ratios["ap75"] == pytest.approx(2 / 6)
    assert ratios["ap80"] == ratios["ap95"] == pytest.approx(1 / 7)
    assert ratios["mean_ap"] == pytest.approx((6 * 2 / 6 + 4 / 7) / 10)
    assert ratios["f1_50"] == ratios["precision_50"] == ratios["recall_50"] == 0.5
    assert ratios["segmentation_quality"] == pytest.approx(0.9)
    assert ratios["panoptic_quality"] == pytest.approx(0.45)


def test_quality_is_that_of_the_matches_at_a_half():
    counts = InstanceCounts.from_labels(np.ones((1, 19), int), np.eye(1, 19, dtype=int))
    assert counts.segmentation_quality == counts.panoptic_quality == 0
    half = np.array([[1] * 10 + [0] * 9])
    counts = InstanceCounts.from_labels(np.ones((1, 19), int), half)
    assert counts.tp[:2].tolist() == [1, 0]
    assert counts.segmentation_quality == counts.panoptic_quality == 10 / 19


def test_a_nucleus_split_in_two_and_two_that_are_merged():
    split = np.array([[1, 1, 1, 1, 1, 1, 2, 2, 2, 2]])
    whole = np.minimum(split, 1)
    found = InstanceCounts.from_labels(whole, split)
    assert (found.tp[0], found.fp[0], found.fn[0]) == (
        1,
        1,
        0,
    )  # .6 is the larger part.
    assert found.tp[2] == 0
    assert found.signed_count_error == found.count_error == 1
    merged = InstanceCounts.from_labels(split, whole)
    assert (merged.tp[0], merged.fp[0], merged.fn[0]) == (1, 0, 1)
    assert (merged.signed_count_error, merged.count_error) == (-1, 1)
    assert merged.precision[0] == 1 and merged.recall[0] == 0.5


@hypothesis.given(label_pairs())
def test_values_are_those_of_the_slow_version(pair):
    counts = InstanceCounts.from_labels(*pair)
    ap = average_precision(*pair)
    for index, threshold in enumerate(THRESHOLDS):
        expected = reference.metrics(*pair, fractions.Fraction(str(threshold)))
        for name in ARRAYS:
            value = getattr(counts, name)[index]
            assert value == pytest.approx(expected[name], abs=1e-14), name
        assert ap[index] == counts.average_precision[index]
        if threshold == 0.5:
            for name in ("segmentation_quality", "panoptic_quality"):
                assert counts.ratios()[name] == pytest.approx(expected[name])


@hypothesis.given(label_pairs(), st.sampled_from(["0", ".1", ".2", ".3", ".4"]))
def test_ap_below_a_half_is_that_of_the_slow_version(pair, threshold):
    expected = reference.metrics(*pair, fractions.Fraction(threshold))
    (ap,) = average_precision(*pair, [float(threshold)])
    assert ap == pytest.approx(expected["average_precision"], abs=1e-14)


@hypothesis.given(label_pairs(), st.integers(0, 99))
def test_permuted_ids_with_gaps_change_nothing(pair, seed):
    renumbered = (renumber(labels, seed + i) for i, labels in enumerate(pair))
    assert_same(
        InstanceCounts.from_labels(*renumbered), InstanceCounts.from_labels(*pair)
    )


@hypothesis.given(label_pairs())
def test_swapped_arguments_swap_false_and_missed(pair):
    counts = InstanceCounts.from_labels(*pair)
    swapped = InstanceCounts.from_labels(*pair[::-1])
    assert swapped.tp.tolist() == counts.tp.tolist()
    assert swapped.fp.tolist() == counts.fn.tolist()
    assert swapped.recall.tolist() == counts.precision.tolist()
    assert swapped.signed_count_error == -counts.signed_count_error
    assert swapped.panoptic_quality == pytest.approx(counts.panoptic_quality)


@hypothesis.given(label_pairs(), st.sampled_from(["flip", "transpose", "enlarge"]))
def test_where_the_nuclei_lie_changes_nothing(pair, change):
    moved = {
        "flip": lambda labels: labels[::-1, ::-1],
        "transpose": np.transpose,
        "enlarge": lambda labels: np.pad(np.kron(labels, np.ones((2, 2), int)), 3),
    }[change]
    assert_same(
        InstanceCounts.from_labels(*map(moved, pair)), InstanceCounts.from_labels(*pair)
    )


@hypothesis.given(label_pairs())
def test_a_prediction_equal_to_the_truth_scores_1(pair):
    labels, _ = pair
    counts = InstanceCounts.from_labels(labels, renumber(labels, seed=1))
    assert set(counts.ratios().values()) == {1.0}
    assert counts.count_error == 0


@pytest.mark.parametrize(
    ("true_labels", "pred_labels", "score", "error"),
    [(EMPTY, EMPTY, 1, 0), (BAR, EMPTY, 0, -1), (EMPTY, BAR, 0, 1), (BAR, BAR, 1, 0)],
    ids=["nothing found", "all missed", "all false", "found"],
)
def test_empty_truth_and_empty_prediction(true_labels, pred_labels, score, error):
    counts = InstanceCounts.from_labels(true_labels, pred_labels)
    assert set(counts.ratios().values()) == {score}
    assert average_precision(true_labels, pred_labels).tolist() == [score] * 10
    assert (counts.signed_count_error, counts.count_error) == (error, abs(error))


def test_an_image_without_pixels_holds_no_nucleus():
    empty = np.zeros((0, 3), np.int32)
    assert average_precision(empty, empty).tolist() == [1] * 10


def test_ap_has_the_shape_of_the_thresholds():
    assert average_precision(BAR, BAR, 0.5).shape == ()
    assert average_precision(BAR, BAR, []).shape == (0,)
    grid = average_precision(BAR, BAR, np.array([[0.5, 0.6], [0.99, 1]]))
    assert grid.tolist() == [[1, 1], [1, 0]]


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        average_precision(BAR, BAR[1:])
    with pytest.raises(ValueError, match="threshold is 50"):
        average_precision(BAR, BAR, [50])


@hypothesis.given(st.lists(label_pairs(), min_size=1, max_size=4), st.integers(0, 3))
def test_merged_counts_are_those_of_images_side_by_side(pairs, cut):
    parts = [InstanceCounts.from_labels(*pair) for pair in pairs]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    # Nuclei of different images must not share an id.
    apart = [np.where(pair, np.add(pair, 10 * i), 0) for i, pair in enumerate(pairs)]
    assert_same(merged, InstanceCounts.from_labels(*np.concatenate(apart, axis=2)))
    first, *rest = parts[cut % len(parts) :] + parts[: cut % len(parts)]
    for part in rest:
        first = part.merge(first)
    assert_same(merged, first)


def test_pooled_ap_weighs_nuclei_and_not_images():
    full = InstanceCounts.from_labels(bars(9, 9, 9), bars(9, 9, 9))
    missed = InstanceCounts.from_labels(BAR, EMPTY)
    merged = full.merge(missed)
    assert merged.average_precision.tolist() == [3 / 4] * 10
    assert merged.panoptic_quality == pytest.approx(6 / 7)


def test_discs_moved_by_pixels_match_up_to_the_iou_of_one():
    single = disc_grid(32, 32)
    moved = np.roll(single, 4, axis=1)
    iou = (single & moved).sum() / (single | moved).sum()
    ap = average_precision(disc_grid(128, 32), np.roll(disc_grid(128, 32), 4, axis=1))
    assert ap.tolist() == [float(threshold < iou) for threshold in THRESHOLDS]
    assert 0 < ap.mean() < 1


def perfect_mask_parts(true_labels):
    """What a perfect mask makes of the nuclei: its connected parts."""
    return skimage.measure.label(true_labels > 0, connectivity=1)


def test_real_nuclei_are_counted_as_by_the_slow_version():
    true_labels = images.read_label_image(SAMPLE / "labels" / "0bf33d3d.png")
    pred_labels = perfect_mask_parts(true_labels)
    ious = reference.all_ious(true_labels, pred_labels)
    counts = InstanceCounts.from_labels(true_labels, pred_labels)
    for tp, threshold in zip(counts.tp, THRESHOLDS, strict=True):
        assert tp == sum(
            iou > threshold for row in ious.values() for iou in row.values()
        )
    assert 0 < counts.tp[-1] < counts.num_true


def test_touching_nuclei_bound_what_a_perfect_mask_can_score():
    """The oracle, whose value checks the metric against other implementations.

    On all 71 validation images of the Data Science Bowl's `grouped_split` it is .771
    (.767 if pixels connect by corners too), where others report .766 for their split.
    """
    scores = []
    for path in sorted((SAMPLE / "labels").iterdir()):
        true_labels = images.read_label_image(path)
        ap = average_precision(true_labels, perfect_mask_parts(true_labels))
        scores.append(ap.mean())
    assert np.mean(scores) == pytest.approx(0.6921, abs=1e-4)
    assert max(scores) == 1
