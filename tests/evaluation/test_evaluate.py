"""The loop over a data set, with a network whose answers are known."""

import dataclasses
import json

import numpy as np
import pytest

from nucseg_jax.config import DataConfig, DecodingConfig
from nucseg_jax.data.images import ImageError
from nucseg_jax.evaluation.evaluate import (
    METRICS,
    Evaluation,
    evaluate,
    predict_example,
    tune_threshold,
)
from nucseg_jax.inference.segmenter import Segmenter

# Truth and prediction overlap in half of each: tp = fp = fn = tn = 4.
HALF_TRUTH = np.repeat([[1, 1, 0, 0]], 4, axis=0)
HALF_FOUND = np.repeat([[0, 255, 255, 0]], 4, axis=0)
EMPTY = np.zeros((2, 8))
PIXEL = np.pad([[1]], 1)
COMPONENTS = DecodingConfig(method="components")


@pytest.fixture
def examples(make_example):
    return [
        make_example("empty", EMPTY, EMPTY),
        make_example("half", HALF_FOUND, HALF_TRUTH),
        make_example("pixel", 255 * PIXEL, PIXEL),
    ]


@pytest.fixture
def evaluation(segmenter, examples):
    return evaluate(segmenter, examples, threshold=0.5)


def test_pooled_metrics_sum_the_pixels_first(evaluation):
    tp, fp, fn, tn = 0 + 4 + 1, 0 + 4 + 0, 0 + 4 + 0, 16 + 4 + 8
    pooled = evaluation.pooled()
    assert pooled["support"] == tp + fn
    assert pooled["iou"] == pytest.approx(tp / (tp + fp + fn))
    assert pooled["f1"] == pooled["dice"] == pytest.approx(10 / 18)
    assert pooled["precision"] == pytest.approx(tp / (tp + fp))
    assert pooled["recall"] == pytest.approx(tp / (tp + fn))
    assert pooled["specificity"] == pytest.approx(tn / (tn + fp))
    assert pooled["accuracy"] == pytest.approx((tp + tn) / 41)
    assert pooled["hard_mask_auc"] == pytest.approx((5 / 9 + 28 / 32) / 2)
    # Probabilities of 0 and 1 alone: both kinds of AUC agree.
    assert pooled["auc"] == pytest.approx(pooled["hard_mask_auc"])


def test_per_image_mean_gives_each_image_the_same_weight(evaluation):
    mean = evaluation.per_image_mean()
    assert mean["iou"] == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert mean["dice"] == mean["f1"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert mean["specificity"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    # The empty image has no AUC and takes no part in its mean.
    assert mean["auc"] == pytest.approx((1 / 2 + 1) / 2)


def test_an_image_with_no_nuclei_and_none_found_scores_1(evaluation):
    counts = evaluation.scores[0].counts
    assert [getattr(counts, name) for name in METRICS] == [1] * len(METRICS)


def test_scores_keep_the_order_of_the_examples(evaluation, examples):
    assert [score.example for score in evaluation.scores] == examples


def test_ranked_goes_from_best_to_worst_ap_then_pixel_iou(segmenter, make_example):
    """AP 1, .4, 0 and 0 once more, of a nucleus of which less is found."""
    found = {
        "b": [255, 0, 0, 0, 0],
        "c": [255, 255, 255, 255, 255],
        "a": [255, 255, 0, 0, 0],
        "d": [255, 255, 255, 255, 0],
    }
    examples = [make_example(name, [row], [[1] * 5]) for name, row in found.items()]
    ranked = evaluate(segmenter, examples, threshold=0.5).ranked()
    assert [score.example.id for score in ranked] == ["c", "d", "a", "b"]


def test_ap_ranks_before_pixel_iou(segmenter, make_example):
    """All pixels but one are found, yet as one nucleus of the two."""
    merged = make_example("m", [[255] * 9], [[1, 1, 1, 1, 0, 2, 2, 2, 2]])
    small = make_example("s", [[255, 255, 255, 0]], [[1, 1, 1, 1]])
    ranked = evaluate(segmenter, [merged, small], threshold=0.5).ranked()
    assert [score.example.id for score in ranked] == ["s", "m"]
    assert ranked[0].counts.iou < ranked[1].counts.iou


def test_to_dict_holds_all_numbers_and_is_strict_json(evaluation):
    numbers = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert numbers["threshold"] == 0.5
    assert numbers["num_images"] == 3
    assert numbers["pooled"] == pytest.approx(evaluation.pooled())
    assert numbers["per_image_mean"] == pytest.approx(evaluation.per_image_mean())
    assert list(numbers["images"]) == ["empty", "half", "pixel"]
    assert numbers["images"]["half"]["iou"] == pytest.approx(1 / 3)
    assert set(numbers["images"]["half"]) == {*METRICS, "instances"}


def test_what_is_undefined_is_none(segmenter, make_example):
    evaluation = evaluate(segmenter, [make_example("e", EMPTY, EMPTY)], threshold=0.5)
    numbers = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert numbers["pooled"]["auc"] is None
    assert numbers["per_image_mean"]["auc"] is None
    assert numbers["pooled"]["iou"] == 1
    assert numbers["instances"]["pooled"]["mean_ap"] == 1


def test_the_threshold_itself_is_foreground(segmenter, make_example):
    example = make_example("a", [[127, 128, 129, 0]], [[1, 1, 1, 0]])
    for threshold, found in ((127 / 255, 3), (128 / 255, 2), (0.504, 1), (0.51, 0)):
        evaluation = evaluate(segmenter, [example], threshold=threshold)
        assert evaluation.merged_counts().tp == found


def test_score_size_resizes_truth_and_prediction(segmenter, make_example):
    wide = [np.kron(array, np.ones((2, 4))) for array in (HALF_FOUND, HALF_TRUTH)]
    examples = [make_example("half", *wide), make_example("empty", EMPTY, EMPTY)]
    evaluation = evaluate(segmenter, examples, threshold=0.5, score_size=4)
    first, second = (score.counts for score in evaluation.scores)
    assert (first.tp, first.fp, first.fn, first.tn) == (4, 4, 4, 4)
    assert (second.tp, second.fp, second.fn, second.tn) == (0, 0, 0, 16)


def test_score_size_averages_probabilities_and_picks_labels(segmenter, make_example):
    example = make_example("a", [[0, 51, 255, 255]] * 4, [[0, 0, 7, 7]] * 4)
    image, label_image, probs = predict_example(segmenter, example, score_size=2)
    np.testing.assert_array_equal(label_image, [[0, 7]] * 2)
    np.testing.assert_allclose(probs, [[[0.1], [1]]] * 2, atol=1e-6)
    np.testing.assert_allclose(image, [[[0.1, 0, 0], [1, 0, 0]]] * 2, atol=1e-6)
    assert probs.dtype == np.float32


def test_a_network_that_resizes_is_scored_at_the_images_own_size(make_example):
    labels = np.kron(HALF_TRUTH, np.ones((6, 10)))
    example = make_example("a", 255 * labels, labels)
    shapes = []

    def predict_fn(images):
        shapes.append(images.shape)
        return images[..., :1]

    config = DataConfig(framing="resize", size=16, clahe_clip_limit=0)
    segmenter = Segmenter(predict_fn, config, decoding=COMPONENTS)
    evaluation = evaluate(segmenter, [example], threshold=0.5)
    counts = evaluation.merged_counts()
    assert shapes == [(1, 16, 16, 3)]  # Predicted once.
    assert counts.tp + counts.fp + counts.fn + counts.tn == 24 * 40
    assert counts.iou == 1
    assert evaluation.scores[0].instances.ratios()["mean_ap"] == 1


# Two nuclei that are found as one, and two that are found, beside a false one.
MERGED = ([[255, 255, 255, 255, 0, 0]], [[1, 1, 1, 2, 0, 0]])
FOUND = ([[255, 0, 255, 0, 255, 0]], [[7, 0, 900, 0, 0, 0]])
# AP of the first is TP / (TP + FP + FN) = 1 / 2 below IoU .75, and 0 from there on.
MERGED_MEAN_AP, FOUND_MEAN_AP = 0.5 * 5 / 10, 2 / 3


@pytest.fixture
def nuclei(segmenter, make_example):
    """Three images of two modalities, and one that names none."""
    columns = [{"modality": "a"}, {"modality": "b"}, {"modality": "b"}, {"other": "a"}]
    drawn = [MERGED, FOUND, (EMPTY, EMPTY), FOUND]
    examples = [
        make_example(f"{i}", *pair, columns=chosen)
        for i, (pair, chosen) in enumerate(zip(drawn, columns, strict=True))
    ]
    return evaluate(segmenter, examples, threshold=0.5)


def test_instances_are_scored_image_by_image(nuclei):
    mean_aps = [score.instances.ratios()["mean_ap"] for score in nuclei.scores]
    assert mean_aps == pytest.approx([MERGED_MEAN_AP, FOUND_MEAN_AP, 1, FOUND_MEAN_AP])
    values = nuclei.to_dict()["images"]["0"]["instances"]
    assert values["mean_ap"] == pytest.approx(MERGED_MEAN_AP)
    assert (values["num_true"], values["num_pred"]) == (2, 1)
    assert (values["count_error"], values["signed_count_error"]) == (1, -1)


def test_mean_of_the_images_instance_metrics(nuclei):
    mean = nuclei.mean_instances()
    expected = (MERGED_MEAN_AP + 2 * FOUND_MEAN_AP + 1) / 4
    assert mean["mean_ap"] == pytest.approx(expected)
    assert mean["ap50"] == pytest.approx((0.5 + 2 * 2 / 3 + 1) / 4)
    assert mean["ap75"] == pytest.approx((0 + 2 * 2 / 3 + 1) / 4)
    assert mean["count_error"] == pytest.approx((1 + 1 + 0 + 1) / 4)
    assert mean["signed_count_error"] == pytest.approx((-1 + 1 + 0 + 1) / 4)


def test_pooled_instances_count_the_nuclei_first(nuclei):
    pooled = nuclei.pooled_instances()
    assert (pooled["num_true"], pooled["num_pred"]) == (2 + 2 + 2, 1 + 3 + 3)
    assert pooled["ap50"] == pytest.approx(5 / (6 + 7 - 5))
    assert pooled["ap75"] == pytest.approx(4 / (6 + 7 - 4))
    assert pooled["panoptic_quality"] == pytest.approx((0.75 + 4) / ((6 + 7) / 2))
    assert "count_error" not in pooled


def test_modalities_are_told_apart_where_the_index_names_them(nuclei):
    groups = nuclei.by_modality()
    assert list(groups) == ["b", "a"]
    assert groups["a"]["num_images"] == 1 and groups["b"]["num_images"] == 2
    assert groups["a"]["mean_ap"] == pytest.approx(MERGED_MEAN_AP)
    assert groups["b"]["mean_ap"] == pytest.approx((FOUND_MEAN_AP + 1) / 2)
    assert groups["b"]["ap50"] == pytest.approx((2 / 3 + 1) / 2)
    assert groups["b"]["count_error"] == 0.5
    assert groups["a"]["pixel_iou"] == 1
    assert groups["b"]["pixel_iou"] == pytest.approx((2 / 3 + 1) / 2)


def test_no_modality_is_no_group(evaluation):
    assert evaluation.by_modality() == {}


def test_to_dict_holds_the_instance_metrics_and_the_decoding(nuclei):
    numbers = json.loads(json.dumps(nuclei.to_dict(), allow_nan=False))
    instances = numbers["instances"]
    assert instances["num_images"] == 4
    assert instances["per_image_mean"] == pytest.approx(nuclei.mean_instances())
    assert instances["pooled"] == pytest.approx(nuclei.pooled_instances())
    assert instances["by_modality"]["b"] == pytest.approx(nuclei.by_modality()["b"])
    assert numbers["decoding"]["method"] == "components"
    assert numbers["decoding"]["min_area"] == 0


def test_masks_are_not_scored_as_instances(segmenter, make_example):
    """As a mask, the two nuclei of the truth are one, and would be found."""
    red, labels = MERGED
    mask = make_example("mask", red, np.minimum(labels, 1), kind="mask")
    evaluation = evaluate(segmenter, [mask], threshold=0.5)
    assert evaluation.scores[0].instances is None
    assert evaluation.instance_counts == []
    numbers = evaluation.to_dict()
    assert numbers["instances"] is None
    assert numbers["images"]["mask"]["instances"] is None
    assert numbers["pooled"]["iou"] == 1
    assert [score.example.id for score in evaluation.ranked()] == ["mask"]


def test_masks_among_label_images_are_left_out_of_instance_metrics(
    segmenter, make_example
):
    red, labels = MERGED
    mask = make_example("mask", red, np.minimum(labels, 1), kind="mask")
    merged = make_example("labels", red, labels)
    evaluation = evaluate(segmenter, [mask, merged], threshold=0.5)
    assert len(evaluation.instance_counts) == 1
    assert evaluation.mean_instances()["mean_ap"] == pytest.approx(MERGED_MEAN_AP)
    assert [score.example.id for score in evaluation.ranked()] == ["labels"]


def test_one_mask_file_a_nucleus_tells_nuclei_apart(segmenter, make_example):
    example = make_example("a", *MERGED)
    parts = [
        make_example(f"part {i}", MERGED[0], np.equal(MERGED[1], i)).truth[0]
        for i in (1, 2)
    ]
    example = dataclasses.replace(example, truth=tuple(parts), kind="nuclei")
    (score,) = evaluate(segmenter, [example], threshold=0.5).scores
    assert score.instances.num_true == 2
    assert score.instances.ratios()["mean_ap"] == pytest.approx(MERGED_MEAN_AP)


class Inverted(Segmenter):
    """Takes what is not red for foreground, and what is not green for nuclei."""

    def __init__(self):
        config = DataConfig(framing="crop", clahe_clip_limit=0)
        super().__init__(lambda images: 1 - images[..., :2], config)
        self.decoded = []

    def decode(self, probs, **options):
        self.decoded.append(probs)
        return (probs[..., 1] > 0.5).astype(np.int32)


def test_nuclei_are_made_of_all_channels_of_the_probabilities(make_example):
    segmenter = Inverted()
    (score,) = evaluate(segmenter, [make_example("a", *MERGED)], threshold=0.5).scores
    (probs,) = segmenter.decoded
    np.testing.assert_array_equal(probs[0, :, 0], [0, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(probs[0, :, 1], [1] * 6)
    assert score.instances.num_pred == 1
    assert score.counts.tp == 0


def test_nuclei_are_made_at_the_size_of_the_image_and_scored_at_score_size(
    make_example,
):
    """Sizes in the decoding are pixels of the image."""
    segmenter = Inverted()
    for score_size, num_pixels in ((8, 64), (0, 6)):
        example = make_example("a", *MERGED)
        (score,) = evaluate(
            segmenter, [example], threshold=0.5, score_size=score_size
        ).scores
        assert segmenter.decoded[-1].shape == (1, 6, 2)
        counts = score.counts
        assert counts.tp + counts.fp + counts.fn + counts.tn == num_pixels
        assert score.instances.num_pred == 1


def test_tuned_threshold_has_the_highest_pooled_iou(segmenter, make_example):
    rng = np.random.default_rng(0)
    examples = []
    for name in "abc":
        labels = rng.random((12, 12)) < 0.3
        red = rng.integers(0, 150, labels.shape) + 60 * labels
        examples.append(make_example(name, red, labels))

    def pooled_iou(threshold):
        return evaluate(segmenter, examples, threshold=threshold).pooled()["iou"]

    tuned = tune_threshold(segmenter, examples)
    # Steps of 8 bits, each a little below a value that occurs.
    best = max(pooled_iou((value - 0.5) / 255) for value in range(1, 210, 5))
    assert pooled_iou(tuned) >= best > pooled_iou(0.5)


def test_tuned_threshold_separates_what_can_be_separated(segmenter, make_example):
    example = make_example("a", [[20, 40, 70, 90]], [[0, 0, 1, 1]])
    assert 40 / 255 < tune_threshold(segmenter, [example]) <= 70 / 255


def test_examples_may_come_one_by_one(segmenter, examples):
    evaluation = evaluate(segmenter, iter(examples), threshold=0.5)
    assert isinstance(evaluation, Evaluation)
    assert len(evaluation.scores) == 3


def test_no_examples_is_an_error(segmenter):
    with pytest.raises(ValueError, match="no examples"):
        evaluate(segmenter, [], threshold=0.5)
    with pytest.raises(ValueError, match="no examples to tune"):
        tune_threshold(segmenter, [])


def test_an_image_without_readable_truth_is_an_error(segmenter, examples):
    missing = dataclasses.replace(examples[1], truth=(examples[1].image / "no.png",))
    with pytest.raises(ImageError, match="no such file"):
        evaluate(segmenter, [examples[0], missing], threshold=0.5)
    other = dataclasses.replace(examples[1], truth=examples[0].truth)
    with pytest.raises(ImageError, match=r"\(2, 8\)"):
        evaluate(segmenter, [other], threshold=0.5)
