"""A trained network as one callable: image in, nuclei out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from nucseg_jax.checkpoints import restore_for_inference
from nucseg_jax.config import Config, DataConfig
from nucseg_jax.data import images, preprocessing
from nucseg_jax.inference.instances import label_nuclei
from nucseg_jax.inference.measurements import measure_nuclei
from nucseg_jax.inference.predictor import Mode, make_predict_fn
from nucseg_jax.network.unet_plus_plus import UNetPlusPlus, Variables

# Images of many sizes share few compiled shapes: sizes are rounded up to this.
_SIZE_STEP = 64


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """The nuclei of one image.

    Attributes:
      labels: int32 [H, W], 0 = background, 1..n = nuclei.
      probs: float32 [H, W, T], probabilities of each target.
      measurements: Columns of n values, see `measurements.measure_nuclei`.
    """

    labels: np.ndarray
    probs: np.ndarray
    measurements: dict[str, np.ndarray]


class Segmenter:
    """Finds the nuclei in images of any size, prepared as in training."""

    def __init__(
        self,
        predict_fn: Callable[[Any], jax.Array],
        config: DataConfig,
        *,
        threshold: float = 0.5,
    ):
        """Wraps a prediction function.

        Args:
          predict_fn: From `make_predict_fn`.
          config: Of the training data: framing and preparation.
          threshold: Least probability of the foreground.
        """
        self._predict_fn = predict_fn
        self._config = config
        self.threshold = threshold

    def __call__(self, image: np.ndarray) -> Segmentation:
        """Segments an array [H, W] or [H, W, 1 to 4] of any dtype, see `to_rgb`."""
        probs = self.predict(images.to_rgb(np.asarray(image)))
        labels = label_nuclei(probs[..., 0], threshold=self.threshold)
        return Segmentation(labels, probs, measure_nuclei(labels, probs[..., 0]))

    def predict(
        self, image: np.ndarray, *, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Predicts the probabilities of an image.

        Args:
          image: float32 [H, W, 3] in [0, 1].
          size: Height and width of the result; None = the image's own.

        Returns:
          float32 [*size, T].
        """
        resizes = self._config.framing == "resize"
        image_u8 = preprocessing.prepare_image(
            image,
            clahe_clip_limit=self._config.clahe_clip_limit,
            side=self._config.size if resizes else 0,
        )
        # Squares of one size share a shape as they are.
        step = 1 if resizes else _SIZE_STEP
        probs = self._predict_padded(preprocessing.to_float(image_u8), step)
        resized = preprocessing.resize(probs, size or image.shape[:2])
        # OpenCV drops a last axis of length one.
        return resized.reshape(*resized.shape[:2], probs.shape[-1])

    def _predict_padded(self, image: np.ndarray, step: int) -> np.ndarray:
        height, width = image.shape[:2]
        padding = [(0, -n % step) for n in (height, width)]
        padded = np.pad(image, [*padding, (0, 0)], mode="symmetric")
        probs = np.asarray(self._predict_fn(padded[None]))[0]
        return probs[:height, :width]


def load_segmenter(
    checkpoint: str | os.PathLike | None = None,
    *,
    mode: Mode = "accurate",
    threshold: float = 0.5,
) -> Segmenter:
    """Loads a trained network.

    Args:
      checkpoint: The folder that training wrote to.
      mode: "accurate", or "fast" for the one head that validation chose.
      threshold: Least probability of the foreground.

    Raises:
      CheckpointError: If there is no readable checkpoint.
      ValueError: If none is named: no weights are shipped yet.
    """
    if checkpoint is None:
        raise ValueError("no weights are shipped yet: name the folder of a trained run")
    restored = restore_for_inference(os.fspath(checkpoint))
    return make_segmenter(*restored, mode=mode, threshold=threshold)


def make_segmenter(
    model: UNetPlusPlus,
    variables: Variables,
    config: Config,
    *,
    mode: Mode = "accurate",
    threshold: float = 0.5,
) -> Segmenter:
    """Makes a segmenter of what `restore_for_inference` returns."""
    head = config.inference.fast_head or None
    predict_fn = make_predict_fn(model, variables, mode, head=head)
    return Segmenter(predict_fn, config.data, threshold=threshold)
