"""The loop over a data set: predictions against truth -> scores.

Instances are scored where the truth tells them apart. A truth of binary masks does
not: nuclei that touch are one there. Such examples get pixel scores alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nucseg_jax.data import preprocessing, truth
from nucseg_jax.data.index import Example
from nucseg_jax.evaluation.instance_metrics import InstanceCounts
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
    """The scores of one image.

    Attributes:
      example: The image and its truth.
      counts: Its pixels.
      histogram: Its pixels by probability.
      instances: Its nuclei; None if the truth does not tell them apart.
    """

    example: Example
    counts: PixelCounts
    histogram: ScoreHistogram
    instances: InstanceCounts | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns all metrics for JSON."""
        metrics: dict[str, Any] = _finite(
            {name: getattr(self.counts, name) for name in METRICS}
        )
        instances = None if self.instances is None else _image_values(self.instances)
        return metrics | {"instances": instances}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of a whole data set, image by image.

    Attributes:
      scores: In the order of the examples.
      threshold: Least probability of the foreground, for the pixel metrics.
      decoding: Settings that made nuclei of the probabilities, by name.
    """

    scores: tuple[ImageScore, ...]
    threshold: float
    decoding: Mapping[str, Any] | None = None

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

    @property
    def instance_counts(self) -> list[InstanceCounts]:
        """The nuclei of each image whose truth tells them apart."""
        return [s.instances for s in self.scores if s.instances is not None]

    def pooled_instances(self) -> dict[str, float]:
        """Instance metrics of all nuclei together, with their numbers."""
        merged = _merge_all(self.instance_counts)
        numbers = {"num_true": merged.num_true, "num_pred": merged.num_pred}
        return merged.ratios() | numbers

    def mean_instances(self) -> dict[str, float]:
        """Mean of each image's instance metrics and count errors."""
        return _mean([_image_values(counts) for counts in self.instance_counts])

    def by_modality(self) -> dict[str, dict[str, float]]:
        """Per-image means of each modality that the index names, largest first."""
        groups: dict[str, list[ImageScore]] = {}
        for score in self.scores:
            modality = score.example.columns.get("modality")
            if modality and score.instances is not None:
                groups.setdefault(modality, []).append(score)
        largest_first = sorted(groups.items(), key=lambda item: -len(item[1]))
        return {name: _summarize(group) for name, group in largest_first}

    def ranked(self) -> list[ImageScore]:
        """The scores from best to worst instance mean AP, and pixel IoU where equal.

        Images whose truth tells no nuclei apart are left out, unless all are such.
        """
        scored = [score for score in self.scores if score.instances is not None]
        return sorted(scored or self.scores, key=_quality, reverse=True)

    def to_dict(self) -> dict[str, Any]:
        """Returns all numbers for JSON; what is undefined is None."""
        return {
            "threshold": self.threshold,
            "decoding": self.decoding,
            "num_images": len(self.scores),
            "pooled": _finite(self.pooled()),
            "per_image_mean": _finite(self.per_image_mean()),
            "instances": self._instances_to_dict() if self.instance_counts else None,
            "images": {score.example.id: score.to_dict() for score in self.scores},
        }

    def _instances_to_dict(self) -> dict[str, Any]:
        return {
            "num_images": len(self.instance_counts),
            "per_image_mean": self.mean_instances(),
            "pooled": self.pooled_instances(),
            "by_modality": self.by_modality(),
        }


def evaluate(
    segmenter: Segmenter,
    examples: Iterable[Example],
    *,
    threshold: float,
    score_size: int = 0,
) -> Evaluation:
    """Predicts every example and scores its pixels and its nuclei.

    Args:
      segmenter: The trained network.
      examples: What to score; wrap it for a progress bar.
      threshold: Least probability of the foreground, for the pixel metrics; how
        nuclei are made is the segmenter's own setting.
      score_size: Bring truth and prediction to this square before scoring, pixels;
        0 = score at the image's own size.

    Raises:
      images.ImageError: If an example cannot be read.
      ValueError: If there are no examples.
    """
    scores = tuple(
        _score_example(segmenter, example, threshold=threshold, score_size=score_size)
        for example in examples
    )
    if not scores:
        raise ValueError("there are no examples to evaluate")
    return Evaluation(scores, threshold, dataclasses.asdict(segmenter.decoding))


def predict_example(
    segmenter: Segmenter, example: Example, *, score_size: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads and predicts an example.

    Returns:
      Image float32 [H, W, 3], true label image int32 [H, W] and probabilities float32
      [H, W, T], all of the size to score at.
    """
    image, label_image = truth.read_pair(example)
    size = (score_size, score_size) if score_size else image.shape[:2]
    probs = segmenter.predict(image, size=size)
    label_image = preprocessing.resize_labels(label_image, size)
    return preprocessing.resize(image, size), label_image, probs


def label_example(
    segmenter: Segmenter, example: Example, *, score_size: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads an example and finds its nuclei.

    They are found at the image's own size, which the decoding is tuned for.

    Returns:
      Image float32 [H, W, 3], true and predicted label image, int32 [H, W], all of the
      size to score at.
    """
    image, label_image = truth.read_pair(example)
    size = (score_size, score_size) if score_size else image.shape[:2]
    found = segmenter.decode(segmenter.predict(image))
    true, found = (preprocessing.resize_labels(n, size) for n in (label_image, found))
    return preprocessing.resize(image, size), true, found


def tune_threshold(
    segmenter: Segmenter, examples: Iterable[Example], *, score_size: int = 0
) -> float:
    """Returns the probability whose masks have the highest pooled pixel IoU.

    Raises:
      images.ImageError: If an example cannot be read.
      ValueError: If there are no examples.
    """
    histograms = []
    for example in examples:
        _, label_image, probs = predict_example(
            segmenter, example, score_size=score_size
        )
        histograms.append(_count_probs(probs, label_image))
    if not histograms:
        raise ValueError("there are no examples to tune the threshold on")
    return _merge_all(histograms).best_threshold()


def _score_example(
    segmenter: Segmenter, example: Example, *, threshold: float, score_size: int
) -> ImageScore:
    _, label_image, probs = predict_example(segmenter, example, score_size=score_size)
    foreground = probs[..., 0] >= threshold
    instances = None
    if example.has_instances:
        if score_size:
            _, _, found = label_example(segmenter, example, score_size=score_size)
        else:
            found = segmenter.decode(probs)
        instances = InstanceCounts.from_labels(label_image, found)
    return ImageScore(
        example,
        PixelCounts.from_batch(foreground[None], label_image[None] > 0),
        _count_probs(probs, label_image),
        instances,
    )


def _count_probs(probs: np.ndarray, label_image: np.ndarray) -> ScoreHistogram:
    return ScoreHistogram.from_batch(probs[None, ..., 0], label_image[None] > 0)


def _image_values(counts: InstanceCounts) -> dict[str, float]:
    """Returns the instance metrics and numbers of one image."""
    return counts.ratios() | {
        "num_true": counts.num_true,
        "num_pred": counts.num_pred,
        "count_error": counts.count_error,
        "signed_count_error": counts.signed_count_error,
    }


def _summarize(scores: Sequence[ImageScore]) -> dict[str, float]:
    """Returns the number of images and the means to compare groups of them by."""
    images = [score.to_dict() for score in scores]
    pixel_iou = float(np.mean([image["iou"] for image in images]))
    instances = _mean([image["instances"] for image in images])
    return {"num_images": len(images), "pixel_iou": pixel_iou} | instances


def _quality(score: ImageScore) -> tuple[float, float]:
    """What images are ranked by."""
    mean_ap = score.instances.ratios()["mean_ap"] if score.instances else 0.0
    return mean_ap, score.counts.iou


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the mean of each column of rows with the same names."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _merge_all(counts: list[Any]) -> Any:
    return functools.reduce(lambda total, part: total.merge(part), counts)


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {k: float(v) if np.isfinite(v) else None for k, v in metrics.items()}
