"""Counts and ratios against scikit-learn and a slow float64 version."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import sklearn.metrics

from nucseg_jax.evaluation.pixel_metrics import NUM_BINS, PixelCounts, ScoreHistogram
from tests.reference import pixel_metrics as reference

METRICS = (
    "iou",
    "f1",
    "dice",
    "precision",
    "recall",
    "specificity",
    "accuracy",
    "hard_mask_auc",
)
SHAPE = (6, 4, 5)  # Few pixels, drawn as values: no shape is compiled twice.
EDGES = 1 / (1 + np.exp(-(np.arange(NUM_BINS) * 32 / NUM_BINS - 16)))

few = hypothesis.settings(derandomize=True, deadline=None, max_examples=30)
bits = hnp.arrays(bool, SHAPE)
unit = st.floats(0, 1, width=32)
probabilities = hnp.arrays(np.float32, SHAPE, elements=unit)
splits = st.fixed_dictionaries(
    {
        "order": st.permutations(range(SHAPE[0])),
        "cuts": st.lists(st.integers(0, SHAPE[0]), max_size=3).map(sorted),
        "num_padding": st.integers(0, 3),
        "seed": st.integers(0, 9),
    }
)


def draw_bits(seed, share):
    return np.random.default_rng(seed).random((2, 9, 7)) < share


def none():
    return np.zeros((2, 9, 7), bool)


CASES = {
    "random": (draw_bits(0, 0.4), draw_bits(1, 0.3)),
    "mostly foreground": (draw_bits(2, 0.9), draw_bits(3, 0.8)),
    "empty truth": (draw_bits(4, 0.2), none()),
    "empty prediction": (none(), draw_bits(5, 0.2)),
    "both empty": (none(), none()),
    "all foreground": (~none(), ~none()),
    "all predicted, some true": (~none(), draw_bits(6, 0.5)),
    "some predicted, all true": (draw_bits(7, 0.5), ~none()),
    "all wrong": (draw_bits(8, 0.5), ~draw_bits(8, 0.5)),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def as_tuple(counts):
    return tuple(int(n) for n in (counts.tp, counts.fp, counts.fn, counts.tn))


@cases
def test_counts_and_ratios_equal_the_slow_version(case):
    counts = PixelCounts.from_batch(*case)
    assert as_tuple(counts) == tuple(reference.count(*case).values())
    assert counts.support == case[1].sum()
    for name, value in reference.metrics(*case).items():
        assert getattr(counts, name) == pytest.approx(value, abs=1e-12), name


@cases
def test_ratios_equal_scikit_learn(case):
    foreground, mask = (pixels.ravel() for pixels in case)
    counts = PixelCounts.from_batch(*case)
    at_zero = float((foreground == mask).all())
    for name, score in {
        "precision": sklearn.metrics.precision_score,
        "recall": sklearn.metrics.recall_score,
        "f1": sklearn.metrics.f1_score,
        "iou": sklearn.metrics.jaccard_score,
    }.items():
        value = score(mask, foreground, zero_division=at_zero)
        assert getattr(counts, name) == pytest.approx(value, abs=1e-12), name
        value = score(mask, foreground, zero_division=at_zero, pos_label=0)
        assert getattr(counts.flip(), name) == pytest.approx(value, abs=1e-12), name
    accuracy = sklearn.metrics.accuracy_score(mask, foreground)
    assert counts.accuracy == pytest.approx(accuracy, abs=1e-12)
    if 0 < mask.sum() < mask.size:
        auc = sklearn.metrics.roc_auc_score(mask, foreground)
        assert counts.hard_mask_auc == pytest.approx(auc, abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_nothing_to_find_and_nothing_found_is_perfect(name):
    assert getattr(PixelCounts.from_batch(none(), none()), name) == 1


@pytest.mark.parametrize("name", ["iou", "f1", "precision", "recall", "hard_mask_auc"])
def test_an_empty_side_with_errors_earns_no_free_points(name):
    limit = 0.5 if name == "hard_mask_auc" else 0
    for case in ((none(), draw_bits(5, 0.2)), (~none(), none())):
        assert getattr(PixelCounts.from_batch(*case), name) <= limit


def test_numpy_and_jitted_jax_count_alike():
    valid = np.array([True, False])
    count = jax.jit(PixelCounts.from_batch)
    for foreground, mask in CASES.values():
        expected = PixelCounts.from_batch(foreground, mask, valid)
        assert as_tuple(count(foreground, mask, valid)) == as_tuple(expected)
        assert as_tuple(expected) == as_tuple(
            PixelCounts.from_batch(foreground[:1], mask[:1])
        )


def test_counts_of_several_heads_divide_each_by_itself():
    counts = PixelCounts(
        tp=np.array([3, 0, 0]),
        fp=np.array([1, 0, 2]),
        fn=np.array([2, 0, 0]),
        tn=np.array([4, 10, 8]),
    )
    np.testing.assert_allclose(counts.iou, [3 / 6, 1, 0])
    np.testing.assert_allclose(counts.recall, [3 / 5, 1, 0])


def test_merged_counts_do_not_overflow():
    most = np.int32(2**31 - 1)
    counts = PixelCounts(most, most, most, most).to_host()
    total = counts.merge(counts).merge(counts)
    assert as_tuple(total) == (3 * (2**31 - 1),) * 4
    assert total.iou == pytest.approx(1 / 3, abs=1e-12)
    assert total.f1 == pytest.approx(1 / 2, abs=1e-12)


@pytest.mark.parametrize("cls", [PixelCounts, ScoreHistogram])
@pytest.mark.parametrize("shape", [(2, 4, 4, 1), (2, 4), (1, 4, 4), (2, 4, 5)])
def test_other_shapes_are_refused_and_never_broadcast(cls, shape):
    first = np.zeros((2, 4, 4), np.float32 if cls is ScoreHistogram else bool)
    with pytest.raises(ValueError, match=r"\(2, 4, 4\) and mask"):
        cls.from_batch(first, np.zeros(shape, bool))


@few
@hypothesis.given(bits, bits)
def test_swapping_truth_and_prediction_swaps_the_errors(foreground, mask):
    counts = PixelCounts.from_batch(foreground, mask)
    swapped = PixelCounts.from_batch(mask, foreground)
    assert as_tuple(swapped) == (counts.tp, counts.fn, counts.fp, counts.tn)
    assert swapped.iou == counts.iou
    assert swapped.precision == counts.recall


@few
@hypothesis.given(probabilities, bits, st.lists(unit, min_size=2, max_size=5))
def test_positives_never_rise_with_the_threshold(probs, mask, thresholds):
    counts = [PixelCounts.from_batch(probs >= t, mask) for t in sorted(thresholds)]
    for low, high in zip(counts, counts[1:], strict=False):
        assert high.tp <= low.tp
        assert high.fp <= low.fp
        assert high.tp + high.fn == low.tp + low.fn


def merge_parts(cls, first, second, *, order, cuts, num_padding, seed):
    """Counts the rows in another order, in parts, each filled up with invalid rows."""
    first, second = first[list(order)], second[list(order)]
    rng = np.random.default_rng(seed)
    padding = rng.random((num_padding, *first.shape[1:])) < 0.5
    total = None
    for a, b in zip(np.split(first, cuts), np.split(second, cuts), strict=True):
        valid = np.arange(len(a) + num_padding) < len(a)
        part = cls.from_batch(
            np.concatenate([a, padding.astype(a.dtype)]),
            np.concatenate([b, ~padding]),
            valid,
        )
        total = part if total is None else total.merge(part)
    return total


@few
@hypothesis.given(bits, bits, splits)
def test_counts_are_the_same_in_any_partition(foreground, mask, split):
    merged = merge_parts(PixelCounts, foreground, mask, **split)
    assert as_tuple(merged) == as_tuple(PixelCounts.from_batch(foreground, mask))


@few
@hypothesis.given(probabilities, bits, splits)
def test_histograms_are_the_same_in_any_partition(probs, mask, split):
    merged = merge_parts(ScoreHistogram, probs, mask, **split)
    whole = ScoreHistogram.from_batch(probs, mask)
    np.testing.assert_array_equal(merged.counts, whole.counts)
    np.testing.assert_array_equal(whole.counts.sum(axis=1), [(~mask).sum(), mask.sum()])


def sigmoid(logits):
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def draw_scores(kind):
    """Probabilities float32 [2, 64, 64] and truth, as networks make them."""
    rng = np.random.default_rng(3)
    mask = rng.random((2, 64, 64)) < (0.003 if kind == "imbalanced" else 0.2)
    noise = rng.normal(size=mask.shape)
    probs = {
        "uniform": rng.random(mask.shape).astype(np.float32),
        "overlapping": sigmoid(noise + mask),
        "saturated": sigmoid(12 * noise + np.where(mask, 14, -14)),
        "imbalanced": sigmoid(2 * noise - 4 + 3 * mask),
        "timid": sigmoid(0.1 * noise + 0.1 * mask),
        "8 bits": np.round(sigmoid(2 * noise + mask) * 255).astype(np.float32) / 255,
        "worse than chance": sigmoid(noise - 2 * mask),
    }
    return probs.get(kind), mask


@pytest.mark.parametrize(
    "kind",
    [
        "uniform",
        "overlapping",
        "saturated",
        "imbalanced",
        "timid",
        "8 bits",
        "worse than chance",
    ],
)
def test_auc_is_that_of_scikit_learn(kind):
    probs, mask = draw_scores(kind)
    expected = sklearn.metrics.roc_auc_score(mask.ravel(), probs.ravel())
    assert ScoreHistogram.from_batch(probs, mask).auc == pytest.approx(
        expected, abs=1e-3
    )
    jitted = jax.jit(ScoreHistogram.from_batch)(probs, mask).to_host()
    assert jitted.counts.sum() == mask.size
    assert jitted.auc == pytest.approx(expected, abs=1e-3)


def test_auc_is_that_of_the_slow_version():
    probs, mask = (array[:, :20, :20] for array in draw_scores("overlapping"))
    assert ScoreHistogram.from_batch(probs, mask).auc == pytest.approx(
        reference.auc(probs, mask), abs=1e-3
    )


@cases
def test_auc_of_a_mask_is_the_hard_mask_auc(case):
    foreground, mask = case
    if 0 < mask.sum() < mask.size:
        histogram = ScoreHistogram.from_batch(foreground.astype(np.float32), mask)
        expected = PixelCounts.from_batch(*case).hard_mask_auc
        assert histogram.auc == pytest.approx(expected, abs=1e-12)


def test_auc_of_one_value_everywhere_is_a_half():
    _, mask = draw_scores("uniform")
    constant = np.full(mask.shape, 0.3, np.float32)
    assert ScoreHistogram.from_batch(constant, mask).auc == pytest.approx(0.5)


@pytest.mark.parametrize("fill", [False, True])
def test_auc_of_one_class_alone_is_undefined(fill):
    probs, mask = draw_scores("uniform")
    assert np.isnan(ScoreHistogram.from_batch(probs, np.full_like(mask, fill)).auc)


def near_a_half():
    """The float32 numbers around .5, nine steps to each side."""
    bits_of_half = np.float32(0.5).view(np.int32)
    return (bits_of_half + np.arange(-9, 10, dtype=np.int32)).view(np.float32)[None]


@pytest.mark.parametrize("count", [ScoreHistogram.from_batch, None], ids=["np", "jit"])
@pytest.mark.parametrize(
    "probs", [near_a_half(), draw_scores("overlapping")[0]], ids=["near .5", "random"]
)
def test_a_bin_begins_at_a_half(count, probs):
    count = count or jax.jit(ScoreHistogram.from_batch)
    histogram = count(probs, np.ones(probs.shape, bool)).to_host()
    upper = histogram.counts[1, NUM_BINS // 2 :].sum()
    assert upper == (probs >= 0.5).sum()
    assert 0 < upper < probs.size


def test_probabilities_of_0_and_1_are_counted_at_the_ends():
    probs = np.array([[0, 1, 1]], np.float32)
    counts = ScoreHistogram.from_batch(probs, np.ones((1, 3), bool)).counts
    assert (counts[1, :4].sum(), counts[1, -4:].sum(), counts.sum()) == (1, 2, 3)


@pytest.mark.parametrize("kind", ["uniform", "overlapping", "saturated", "imbalanced"])
def test_best_threshold_is_the_best_of_all_bin_edges(kind):
    probs, mask = draw_scores(kind)
    ious = [reference.pooled_iou(probs, mask, edge) for edge in EDGES]
    best = ScoreHistogram.from_batch(probs, mask).best_threshold()
    assert best == pytest.approx(EDGES[np.argmax(ious)], rel=1e-6)
    counts = PixelCounts.from_batch(probs >= best, mask)
    assert counts.iou == pytest.approx(max(ious), abs=1e-12)


def test_best_threshold_pools_all_batches():
    probs, mask = draw_scores("overlapping")
    parts = [
        ScoreHistogram.from_batch(probs[i : i + 1], mask[i : i + 1]) for i in (0, 1)
    ]
    whole = ScoreHistogram.from_batch(probs, mask)
    assert parts[0].merge(parts[1]).best_threshold() == whole.best_threshold()


def test_masks_that_are_not_bool_are_refused():
    mask = np.ones((1, 2, 2), np.uint8)
    with pytest.raises(ValueError, match="expected bool"):
        PixelCounts.from_batch(mask, mask)


def test_without_foreground_the_threshold_stays_in_the_middle():
    probs = np.full((1, 2, 2), 0.3, np.float32)
    histogram = ScoreHistogram.from_batch(probs, np.zeros(probs.shape, bool))
    assert histogram.best_threshold() == 0.5
