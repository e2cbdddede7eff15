"""The loop over a data set: predictions against truth -> scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nucseg_jax.data import preprocessing, truth
from nucseg_jax.data.index import Example
from nucseg_jax.evaluation.pixel_metrics import PixelCounts, ScoreHistogram
from nucseg_jax.inference.segmenter import Segmenter

METRICS = (
    "f1",
    "iou",
    "dice",
    "precision",
    "recall",
    "specificity",
    "accuracy",
    "hard_mask_auc",
)


@dataclasses.dataclass(frozen=True)
class ImageScore:
    """The scores of one image."""

    example: Example
    counts: PixelCounts
    histogram: ScoreHistogram


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of a whole data set, image by image.

    Attributes:
      scores: In the order of the examples.
      threshold: Least probability of the foreground.
    """

    scores: tuple[ImageScore, ...]
    threshold: float

    def merged_counts(self) -> PixelCounts:
        """The pixels of all images together."""
        return _merge_all([score.counts for score in self.scores])

    def pooled(self) -> dict[str, float]:
        """Metrics of all pixels together, with AUC and support."""
        counts = self.merged_counts()
        histogram = _merge_all([score.histogram for score in self.scores])
        metrics = {name: getattr(counts, name) for name in METRICS}
        return metrics | {"auc": histogram.auc, "support": int(counts.support)}

    def per_image_mean(self) -> dict[str, float]:
        """Mean of each image's metrics; AUC over the images that define it."""
        metrics = {
            name: float(np.mean([getattr(s.counts, name) for s in self.scores]))
            for name in METRICS
        }
        aucs = [score.histogram.auc for score in self.scores]
        defined = [auc for auc in aucs if np.isfinite(auc)]
        return metrics | {"auc": float(np.mean(defined)) if defined else float("nan")}

    def ranked(self) -> list[ImageScore]:
        """The scores from best to worst pixel IoU."""
        return sorted(self.scores, key=lambda score: -score.counts.iou)

    def to_dict(self) -> dict[str, Any]:
        """Returns all numbers for JSON; what is undefined is None."""
        return {
            "threshold": self.threshold,
            "num_images": len(self.scores),
            "pooled": _finite(self.pooled()),
            "per_image_mean": _finite(self.per_image_mean()),
            "images": {
                score.example.id: _finite(
                    {name: getattr(score.counts, name) for name in METRICS}
                )
                for score in self.scores
            },
        }


def evaluate(
    segmenter: Segmenter,
    examples: Iterable[Example],
    *,
    threshold: float,
    score_size: int = 0,
) -> Evaluation:
    """Predicts every example and scores its pixels.

    Args:
      segmenter: The trained network.
      examples: What to score; wrap it for a progress bar.
      threshold: Least probability of the foreground.
      score_size: Bring truth and prediction to this square before scoring, pixels;
        0 = score at the image's own size.

    Raises:
      images.ImageError: If an example cannot be read.
      ValueError: If there are no examples.
    """
    scores = []
    for example in examples:
        foreground, probs = predict_example(segmenter, example, score_size=score_size)
        scores.append(
            ImageScore(
                example,
                PixelCounts.from_batch((probs >= threshold)[None], foreground[None]),
                ScoreHistogram.from_batch(probs[None], foreground[None]),
            )
        )
    if not scores:
        raise ValueError("there are no examples to evaluate")
    return Evaluation(tuple(scores), threshold)


def predict_example(
    segmenter: Segmenter, example: Example, *, score_size: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns true foreground bool [H, W] and probabilities float32 [H, W]."""
    image, label_image = truth.read_pair(example)
    size = (score_size, score_size) if score_size else image.shape[:2]
    probs = segmenter.predict(image, size=size)[..., 0]
    return preprocessing.resize_labels(label_image, size) > 0, probs


def tune_threshold(
    segmenter: Segmenter, examples: Iterable[Example], *, score_size: int = 0
) -> float:
    """Returns the probability whose masks have the highest pooled pixel IoU."""
    evaluation = evaluate(segmenter, examples, threshold=0.5, score_size=score_size)
    histograms = [score.histogram for score in evaluation.scores]
    return _merge_all(histograms).best_threshold()


def _merge_all(counts: list[Any]) -> Any:
    total = counts[0]
    for part in counts[1:]:
        total = total.merge(part)
    return total


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {k: float(v) if np.isfinite(v) else None for k, v in metrics.items()}
