"""Accurate and fast mode against the full network's heads."""

import jax
import numpy as np
import pytest

from nucseg_jax.inference.predictor import make_predict_fn
from nucseg_jax.network.unet_plus_plus import UNetPlusPlus
from tests.helpers import random_variables


@pytest.fixture(scope="module")
def predict(model, variables):
    return make_predict_fn(model, variables)


@pytest.fixture(scope="module")
def head_probs(model, variables, images):
    """float64 [L, B, H, W, T], of the network as a whole."""
    apply = jax.jit(lambda images: model.apply(variables, images, train=False))
    return 1 / (1 + np.exp(-np.asarray(apply(images), np.float64)))


def test_accurate_mode_is_the_mean_of_the_heads(predict, images, head_probs):
    probs = predict(images)
    assert probs.shape == (2, 16, 12, 1)
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs, head_probs.mean(axis=0), atol=1e-6)
    # The heads differ, so that no single one of them would pass.
    assert np.abs(head_probs[0] - head_probs[1]).mean() > 0.05


@pytest.mark.parametrize("head", [1, 2])
def test_fast_mode_is_one_head_of_the_full_network(
    model, variables, images, head_probs, head
):
    probs = make_predict_fn(model, variables, "fast", head=head)(images)
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs, head_probs[head - 1], atol=1e-6)


def test_fast_mode_takes_the_last_head_if_none_is_named(
    model, variables, images, head_probs
):
    probs = make_predict_fn(model, variables, "fast")(images)
    np.testing.assert_allclose(probs, head_probs[-1], atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "head", "message"),
    [
        ("quick", None, "mode is 'quick'; choose accurate or fast"),
        ("fast", 0, "head is 0; the network has 1 to 2"),
        ("fast", 3, "head is 3; the network has 1 to 2"),
    ],
)
def test_other_modes_and_heads_are_refused(model, variables, mode, head, message):
    with pytest.raises(ValueError, match=message):
        make_predict_fn(model, variables, mode, head=head)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 8, 8, 3), np.uint8), "images are uint8; expected floats in"),
        (np.zeros((8, 8, 3), np.float32), r"the shape \(8, 8, 3\); expected \[B"),
        (np.zeros((2, 8, 8), np.float32), r"the shape \(2, 8, 8\); expected \[B"),
    ],
)
def test_images_that_are_not_prepared_are_refused(predict, images, message):
    with pytest.raises(ValueError, match=message):
        predict(images)


def count_flops(predict, images):
    # As for a GPU, which is not needed for it: on CPU, XLA does not see into oneDNN.
    lowered = predict.trace(images).lower(lowering_platforms=("cuda",))
    return lowered.cost_analysis()["flops"]


def test_each_further_head_costs_more():
    model = UNetPlusPlus(features=(2, 3, 4, 5, 6))
    variables = random_variables(model)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    flops = [
        count_flops(make_predict_fn(model, variables, "fast", head=head), images)
        for head in range(1, 5)
    ]
    flops.append(count_flops(make_predict_fn(model, variables), images))
    assert flops[0] > 0
    assert flops == sorted(set(flops))
    assert flops[0] < 0.4 * flops[3]


@pytest.mark.parametrize("size", [(1, 1), (4, 8), (5, 7), (8, 3), (13, 16)])
def test_any_size_is_mirrored_at_its_lower_and_right_edges(predict, size):
    height, width = size
    images = np.random.default_rng(2).random((1, height, width, 3), np.float32)
    probs = predict(images)
    assert probs.shape == (1, height, width, 1)
    margins = [(0, 0), (0, -height % 4), (0, -width % 4), (0, 0)]
    padded = predict(np.pad(images, margins, mode="symmetric"))
    np.testing.assert_allclose(probs, padded[:, :height, :width], atol=1e-6)


def test_images_of_a_batch_do_not_touch_each_other(predict, images):
    together = predict(images)
    np.testing.assert_allclose(together, predict(images[::-1])[::-1], atol=1e-6)
    np.testing.assert_allclose(together[:1], predict(images[:1]), atol=1e-6)


def test_every_target_gets_a_channel():
    model = UNetPlusPlus(features=(2, 3), num_targets=3)
    predict = make_predict_fn(model, random_variables(model))
    probs = predict(np.full((1, 5, 4, 3), 0.5, np.float32))
    assert probs.shape == (1, 5, 4, 3)
    assert len(np.unique(np.asarray(probs)[0, 2, 2])) == 3


def test_bfloat16_computes_nearly_the_same_in_float32_out(
    model, variables, images, head_probs
):
    model = model.clone(dtype=jax.numpy.bfloat16)
    probs = make_predict_fn(model, variables)(images)
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs, head_probs.mean(axis=0), atol=0.05)


class CountingModel:
    """Stands for a network; counts how often it is traced."""

    depth = 3

    def __init__(self):
        self.num_traces = 0

    def apply(self, variables, images, train, interior):
        assert not train and interior is None
        self.num_traces += 1
        return images[None, ..., :1]


def test_a_shape_is_traced_once():
    model = CountingModel()
    predict = make_predict_fn(model, {})
    for side in (4, 5, 4, 5, 4):
        predict(np.zeros((1, side, side, 3), np.float32))
    assert model.num_traces == 2


def test_averaging_views_is_the_mean_of_the_turned_predictions(model, variables):
    images = np.random.default_rng(5).random((2, 16, 16, 3), np.float32)
    predict = make_predict_fn(model, variables)
    expected = np.zeros((2, 16, 16, 1))
    for turns in range(4):
        for mirrored in (images, images[:, :, ::-1]):
            turned = np.asarray(predict(np.rot90(mirrored, turns, axes=(1, 2))))
            back = np.rot90(turned, -turns, axes=(1, 2))
            expected += back if mirrored is images else back[:, :, ::-1]
    averaged = make_predict_fn(model, variables, tta=8)(images)
    np.testing.assert_allclose(averaged, expected / 8, atol=1e-6)
    assert np.abs(averaged - predict(images)).max() > 1e-4


def test_averaged_views_follow_a_turned_image(model, variables):
    """Whichever way the image lies, the result is the same, lying that way."""
    predict = make_predict_fn(model, variables, tta=8)
    image = np.random.default_rng(6).random((1, 16, 16, 3), np.float32)
    result = np.asarray(predict(image))
    turned = np.asarray(predict(np.rot90(image, 1, axes=(1, 2))))
    np.testing.assert_allclose(turned, np.rot90(result, 1, axes=(1, 2)), atol=1e-6)
    mirrored = np.asarray(predict(image[:, ::-1]))
    np.testing.assert_allclose(mirrored, result[:, ::-1], atol=1e-6)


def test_views_of_an_image_that_is_no_square(model, variables, images):
    predict = make_predict_fn(model, variables, tta=8)
    assert predict(images).shape == (2, 16, 12, 1)


def test_there_are_one_or_eight_views(model, variables):
    with pytest.raises(ValueError, match="tta is 4; choose 1 or 8"):
        make_predict_fn(model, variables, tta=4)
