"""Tuning finds settings that are better, and tells how good they are."""

import numpy as np
import pytest

from nucseg_jax.evaluation.evaluate import evaluate
from nucseg_jax.evaluation.tuning import can_tune, tune_decoding


def faint_and_clear():
    """Two nuclei with a soft rim, and faint debris: red channel, truth."""
    red, labels = np.zeros((2, 40, 40), np.uint8)
    for label, corner in enumerate([4, 24], 1):
        nucleus = np.s_[corner : corner + 8, 4:12]
        labels[nucleus] = label
        red[nucleus] = 128
        red[corner + 1 : corner + 7, 5:11] = 255
    red[14:22, 24:32] = 160
    return red, labels


def test_debris_is_told_by_its_mean_probability(segmenter, make_example):
    """A higher threshold would cost the rims, a larger area the nuclei."""
    example = make_example("a", *faint_and_clear())
    tuning = tune_decoding(segmenter, [example])
    assert tuning.before == pytest.approx(2 / 3)
    assert tuning.mean_ap == tuning.num_images == 1
    assert 160 / 255 < tuning.decoding.min_probability <= (36 + 28 * 128 / 255) / 64
    assert tuning.decoding.threshold == segmenter.decoding.threshold


def test_what_is_told_is_what_evaluation_finds(segmenter, make_example):
    rng = np.random.default_rng(0)
    red, labels = faint_and_clear()
    noisy = np.clip(red + rng.normal(scale=40, size=red.shape), 0, 255)
    examples = [make_example("a", red, labels), make_example("b", noisy, labels)]
    tuning = tune_decoding(segmenter, examples)
    scores = evaluate(segmenter, examples, threshold=0.5)
    assert tuning.before == pytest.approx(scores.mean_instances()["mean_ap"])
    segmenter.decoding = tuning.decoding
    scores = evaluate(segmenter, examples, threshold=0.5)
    assert tuning.mean_ap == pytest.approx(scores.mean_instances()["mean_ap"])
    assert tuning.mean_ap > tuning.before


def test_binary_masks_are_left_out(segmenter, make_example):
    whole = make_example("a", *faint_and_clear())
    mask = make_example("b", *faint_and_clear(), kind="mask")
    empty = make_example("c", *np.zeros((2, 40, 40), np.uint8))
    assert can_tune([mask, empty, whole]) and not can_tune([mask, empty])
    assert tune_decoding(segmenter, [mask, whole]) == tune_decoding(segmenter, [whole])
    with pytest.raises(ValueError, match="no example tells touching nuclei apart"):
        tune_decoding(segmenter, [mask])


def test_the_search_can_be_ended(segmenter, make_example):
    """It takes minutes, and a signal shall not wait for it."""
    tries = []

    def stop_at_the_fifth():
        tries.append(1)
        if len(tries) == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        tune_decoding(
            segmenter, [make_example("a", *faint_and_clear())], check=stop_at_the_fifth
        )
    assert len(tries) == 5
