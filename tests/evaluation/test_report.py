"""The printed table, and the choice of images to show."""

import pathlib

import numpy as np
import pytest

from nucseg_jax.data.index import Example
from nucseg_jax.evaluation.evaluate import METRICS, Evaluation, ImageScore
from nucseg_jax.evaluation.instance_metrics import InstanceCounts
from nucseg_jax.evaluation.pixel_metrics import PixelCounts, ScoreHistogram
from nucseg_jax.evaluation.report import ap_curves, best_median_worst, format_table


def make_score(name, tp, fp, fn, tn, instances=None, modality=""):
    example = Example(
        name, pathlib.Path(name), (), "mask", name, {"modality": modality}
    )
    counts = PixelCounts(*(np.int64(n) for n in (tp, fp, fn, tn)))
    probs = np.repeat([[0.9, 0.8, 0.2, 0.1]], [tp, fp, fn, tn], axis=1)
    mask = np.repeat([[True, False, True, False]], [tp, fp, fn, tn], axis=1)
    histogram = ScoreHistogram.from_batch(probs, mask)
    return ImageScore(example, counts, histogram, instances)


def make_evaluation(*shares):
    """One image a share, whose pixel IoU it is, in percent."""
    scores = [make_score(f"iou {n}", n, 100 - n, 0, 50) for n in shares]
    return Evaluation(tuple(scores), threshold=0.375)


@pytest.fixture
def evaluation():
    return Evaluation(
        (make_score("a", 1200, 300, 100, 900), make_score("b", 30, 5, 10, 60)),
        threshold=0.375,
    )


def numbers_of(table, title):
    (line,) = [line for line in table.splitlines() if line.startswith(title + " ")]
    return [float(word.replace(",", "")) for word in line[len(title) :].split()]


TITLES = {
    "F1": "f1",
    "IoU (Jaccard)": "iou",
    "Dice": "dice",
    "AUC of probabilities": "auc",
    "AUC of the mask (hard-mask AUC)": "hard_mask_auc",
    "precision": "precision",
    "recall = sensitivity": "recall",
    "specificity": "specificity",
    "accuracy": "accuracy",
}


@pytest.mark.parametrize("title", TITLES)
def test_table_shows_pooled_and_per_image(evaluation, title):
    name = TITLES[title]
    expected = [evaluation.pooled()[name], evaluation.per_image_mean()[name]]
    assert expected[0] != pytest.approx(expected[1], abs=2e-4)
    assert numbers_of(format_table(evaluation), title) == pytest.approx(
        expected, abs=5e-5
    )


def test_table_leaves_out_no_metric():
    assert set(TITLES.values()) == {*METRICS, "auc"}


def test_table_shows_each_class_as_a_classification_report_does(evaluation):
    table = format_table(evaluation)
    tp, fp, fn, tn = 1230, 305, 110, 960
    assert numbers_of(table, "nucleus") == pytest.approx(
        [tp / (tp + fp), tp / (tp + fn), 2 * tp / (2 * tp + fp + fn), tp + fn], abs=5e-5
    )
    assert numbers_of(table, "background") == pytest.approx(
        [tn / (tn + fn), tn / (tn + fp), 2 * tn / (2 * tn + fp + fn), tn + fp], abs=5e-5
    )
    assert "1,340" in table


def test_table_names_the_images_and_the_threshold(evaluation):
    assert format_table(evaluation).splitlines()[0] == "2 images, threshold 0.375"


def test_table_of_images_without_nuclei_says_nan_where_nothing_is_defined():
    evaluation = Evaluation((make_score("a", 0, 0, 0, 50),), threshold=0.5)
    table = format_table(evaluation)
    assert np.isnan(numbers_of(table, "AUC of probabilities")).all()
    assert numbers_of(table, "F1") == [1, 1]


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([40], {"best": 40}),
        ([40, 60], {"best": 60, "worst": 40}),
        ([50, 90, 10], {"best": 90, "median": 50, "worst": 10}),
        ([50, 90, 10, 70, 20], {"best": 90, "median": 50, "worst": 10}),
    ],
)
def test_best_median_and_worst_image(shares, expected):
    chosen = best_median_worst(make_evaluation(*shares))
    assert {k: round(100 * v.counts.iou) for k, v in chosen.items()} == expected
    assert list(chosen) == list(expected)


def make_instances(num_true, num_pred, tp):
    """Counts whose matches fall evenly over the thresholds."""
    matches = np.linspace(tp, 0, 10).astype(int)
    return InstanceCounts(num_true, num_pred, matches, 0.8 * tp)


@pytest.fixture
def nuclei():
    counts = [(40, 46, 36), (1200, 1100, 900), (7, 7, 7)]
    modalities = ["dark", "bright", "dark"]
    scores = [
        make_score(str(i), 900, 30 + i, 50, 700, make_instances(*numbers), modality)
        for i, (numbers, modality) in enumerate(zip(counts, modalities, strict=True))
    ]
    return Evaluation(tuple(scores), threshold=0.5)


INSTANCE_TITLES = {
    "mean AP (IoU .50:.05:.95)": "mean_ap",
    "AP at IoU .50": "ap50",
    "AP at IoU .75": "ap75",
    "AP at IoU .90": "ap90",
    "F1 at IoU .50": "f1_50",
    "precision at IoU .50": "precision_50",
    "recall at IoU .50": "recall_50",
    "segmentation quality": "segmentation_quality",
    "panoptic quality": "panoptic_quality",
}


@pytest.mark.parametrize("title", INSTANCE_TITLES)
def test_table_shows_instance_metrics_pooled_and_per_image(nuclei, title):
    name = INSTANCE_TITLES[title]
    expected = [nuclei.pooled_instances()[name], nuclei.mean_instances()[name]]
    if name != "segmentation_quality":
        assert expected[0] != pytest.approx(expected[1], abs=2e-4)
    assert numbers_of(format_table(nuclei), title) == pytest.approx(expected, abs=5e-5)


def test_table_shows_the_numbers_of_nuclei(nuclei):
    table = format_table(nuclei)
    (error,) = numbers_of(table, "count error, nuclei an image")
    assert error == pytest.approx((6 + 100 + 0) / 3, abs=5e-3)
    (signed,) = numbers_of(table, "the same with sign, + is too many")
    assert signed == pytest.approx((6 - 100 + 0) / 3, abs=5e-3)
    assert "1,247 nuclei, 1,153 predicted" in table


def test_table_has_a_line_for_each_modality(nuclei):
    table = format_table(nuclei)
    for name, group in nuclei.by_modality().items():
        chosen = ("num_images", "pixel_iou", "mean_ap", "ap50", "count_error")
        expected = [group[key] for key in chosen]
        assert numbers_of(table, name) == pytest.approx(expected, abs=5e-3)
    assert table.index("dark") < table.index("bright")


def test_table_without_modalities_has_no_such_lines(nuclei):
    scores = (make_score("a", 9, 1, 1, 9, make_instances(2, 2, 1)),)
    assert "modality" not in format_table(Evaluation(scores, threshold=0.5))
    assert "modality" in format_table(nuclei)


def test_table_says_why_masks_have_no_instance_metrics(evaluation):
    table = format_table(evaluation)
    assert table.splitlines()[-1].startswith("no instance metrics: in a truth of masks")
    assert "mean AP" not in table


def test_ap_curves_are_of_all_images_and_of_each_modality(nuclei):
    curves = ap_curves(nuclei)
    assert list(curves) == ["all 3 images", "dark (2)", "bright (1)"]
    counts = [score.instances.average_precision for score in nuclei.scores]
    np.testing.assert_allclose(curves["all 3 images"], np.mean(counts, axis=0))
    np.testing.assert_allclose(curves["dark (2)"], (counts[0] + counts[2]) / 2)
    np.testing.assert_allclose(curves["bright (1)"], counts[1])


def test_one_modality_alone_gets_no_curve_of_its_own():
    scores = (make_score("a", 9, 1, 1, 9, make_instances(2, 2, 1), "dark"),)
    curves = ap_curves(Evaluation(scores, threshold=0.5))
    assert list(curves) == ["all 1 images"]


def test_best_image_is_that_of_highest_ap(nuclei):
    chosen = best_median_worst(nuclei)
    assert {k: v.example.id for k, v in chosen.items()} == {
        "best": "2", "median": "0", "worst": "1",
    }  # fmt: skip
