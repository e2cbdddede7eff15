"""The printed table, and the choice of images to show."""

import pathlib

import numpy as np
import pytest

from nucseg_jax.data.index import Example
from nucseg_jax.evaluation.evaluate import METRICS, Evaluation, ImageScore
from nucseg_jax.evaluation.pixel_metrics import PixelCounts, ScoreHistogram
from nucseg_jax.evaluation.report import best_median_worst, format_table


def make_score(name, tp, fp, fn, tn):
    example = Example(name, pathlib.Path(name), (), "mask", name)
    counts = PixelCounts(*(np.int64(n) for n in (tp, fp, fn, tn)))
    probs = np.repeat([[0.9, 0.8, 0.2, 0.1]], [tp, fp, fn, tn], axis=1)
    mask = np.repeat([[True, False, True, False]], [tp, fp, fn, tn], axis=1)
    return ImageScore(example, counts, ScoreHistogram.from_batch(probs, mask))


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
