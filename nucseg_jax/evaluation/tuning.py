"""Chooses how probabilities become nuclei, by instance mean AP on validation images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from nucseg_jax.config import DecodingConfig
from nucseg_jax.data import truth
from nucseg_jax.data.index import Example
from nucseg_jax.evaluation.instance_metrics import average_precision
from nucseg_jax.inference.segmenter import Segmenter

# Each setting in turn takes the best of these while the others stay; a third round
# hardly changes anything.
_CHOICES: dict[str, Sequence[float]] = {
    "threshold": (0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7),
    "peak_distance": (3, 5, 7, 10, 14, 20),
    "peak_height": (0.05, 0.1, 0.15, 0.2, 0.3, 0.4),
    "smoothing": (0.7, 1.0, 1.5, 2.0, 3.0),
    "marker_threshold": (0.0, 0.1, 0.2, 0.3),
    "min_area": (0, 12, 20, 30, 50),
    "min_probability": (0.0, 0.6, 0.65, 0.7, 0.75, 0.8),
}
# Without meaning for a network of foreground alone.
_LEARNED_DEPTH = ("peak_height", "smoothing", "marker_threshold")
_ROUNDS = 2
# Probabilities of more pixels than this are not kept: 800 MB for four targets.
_MOST_PIXELS = 100_000_000


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What was chosen, and how good it is.

    Attributes:
      decoding: The best settings.
      mean_ap: Instance mean AP of the images with it, per-image mean.
      before: The same with the settings that the search began with.
      num_images: How many images that are.
    """

    decoding: DecodingConfig
    mean_ap: float
    before: float
    num_images: int


def can_tune(examples: Iterable[Example]) -> bool:
    """Whether the truth of any example shows nuclei and tells touching ones apart."""
    return any(e.has_instances and truth.read_truth(e).any() for e in examples)


def tune_decoding(
    segmenter: Segmenter,
    examples: Iterable[Example],
    *,
    check: Callable[[], None] = lambda: None,
) -> Tuning:
    """Searches the decoding of highest instance mean AP.

    Args:
      segmenter: The trained network; its own decoding is where the search begins.
      examples: Validation examples; those whose truth does not tell touching nuclei
        apart are left out, and those that do not fit into memory with the others. Wrap
        them for a progress bar.
      check: Called before each try; may raise an error to end the search.

    Raises:
      ValueError: If no example tells nuclei apart.
    """
    pairs = list(_predict_all(segmenter, examples))
    if not pairs:
        raise ValueError("no example tells touching nuclei apart")

    def score(decoding: DecodingConfig) -> float:
        return _mean_ap(pairs, segmenter, decoding)

    start = segmenter.decoding
    before = score(start)
    names = _settings(segmenter.targets)
    best, mean_ap = _search(score, start, before, names, check)
    return Tuning(best, mean_ap, before, len(pairs))


def _predict_all(
    segmenter: Segmenter, examples: Iterable[Example]
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Yields truth [H, W] and probabilities float16 [H, W, T]."""
    num_pixels = 0
    for example in examples:
        if not example.has_instances or num_pixels > _MOST_PIXELS:
            continue
        image, label_image = truth.read_pair(example)
        num_pixels += label_image.size
        yield label_image, segmenter.predict(image).astype(np.float16)


def _mean_ap(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    segmenter: Segmenter,
    decoding: DecodingConfig,
) -> float:
    scores = [
        average_precision(
            label_image,
            segmenter.decode(probs.astype(np.float32), decoding=decoding),
        ).mean()
        for label_image, probs in pairs
    ]
    return float(np.mean(scores))


def _settings(targets: Sequence[str]) -> list[str]:
    """Names of the settings that matter for these targets."""
    unused = _LEARNED_DEPTH if len(targets) == 1 else ()
    return [name for name in _CHOICES if name not in unused]


def _search(
    score: Callable[[DecodingConfig], float],
    best: DecodingConfig,
    best_score: float,
    names: Sequence[str],
    check: Callable[[], None],
) -> tuple[DecodingConfig, float]:
    """Improves one setting after the other; `check` may end the search."""
    for _ in range(_ROUNDS):
        for name in names:
            for choice in _CHOICES[name]:
                # Each time: processes that train together must ask equally often.
                check()
                if choice == getattr(best, name):
                    continue
                candidate = dataclasses.replace(best, **{name: choice})
                candidate_score = score(candidate)
                if candidate_score > best_score:
                    best, best_score = candidate, candidate_score
    return best, best_score
