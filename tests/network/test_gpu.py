"""A GPU finds what a CPU finds: `pytest -m gpu` with NUCSEG_TEST_PLATFORM="" set."""

import pathlib

import jax
import numpy as np
import pytest

from nucseg_jax.checkpoints import restore_for_inference
from nucseg_jax.data.images import read_image
from nucseg_jax.inference.predictor import make_predict_fn
from nucseg_jax.pretrained import find

SAMPLE = pathlib.Path(__file__).parents[2] / "experiments" / "sample_data"

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    # Half a hundredth moves outlines by a fraction of a pixel.
    [("float32", 1e-4), ("default", 5e-3)],
)
def test_probabilities_are_those_of_a_cpu(precision, tolerance):
    image = read_image(SAMPLE / "images" / "514ccfc7.png")[None, :256, :256]
    results = []
    for device in (jax.devices("cpu")[0], jax.devices()[0]):
        with jax.default_device(device), jax.default_matmul_precision(precision):
            model, variables, _ = restore_for_inference(find("small"))
            variables = jax.device_put(variables, device)
            results.append(np.asarray(make_predict_fn(model, variables)(image)))
    np.testing.assert_allclose(*results, atol=tolerance)
