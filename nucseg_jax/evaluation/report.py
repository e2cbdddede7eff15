"""Scores -> a table to read."""

from __future__ import annotations

from nucseg_jax.evaluation.evaluate import Evaluation, ImageScore

_ROWS = {
    "f1": "F1",
    "iou": "IoU (Jaccard)",
    "dice": "Dice",
    "auc": "AUC of probabilities",
    "hard_mask_auc": "AUC of the mask (hard-mask AUC)",
    "precision": "precision",
    "recall": "recall = sensitivity",
    "specificity": "specificity",
    "accuracy": "accuracy",
}


def format_table(evaluation: Evaluation) -> str:
    """Formats pooled and per-image metrics, then precision and recall by class."""
    pooled, mean = evaluation.pooled(), evaluation.per_image_mean()
    lines = [
        f"{len(evaluation.scores)} images, threshold {evaluation.threshold:.3f}",
        "",
        f"{'pixel metric':<34}{'pooled':>9}{'per image':>11}",
    ]
    lines += [
        f"{title:<34}{pooled[name]:>9.4f}{mean[name]:>11.4f}"
        for name, title in _ROWS.items()
    ]
    return "\n".join([*lines, "", *_class_lines(evaluation)])


def _class_lines(evaluation: Evaluation) -> list[str]:
    """Lines of a classification report, as scikit-learn prints it."""
    nucleus = evaluation.merged_counts()
    background = nucleus.flip()
    lines = [f"{'class':<12}{'precision':>11}{'recall':>9}{'F1':>9}{'pixels':>14}"]
    lines += [
        f"{name:<12}{c.precision:>11.4f}{c.recall:>9.4f}{c.f1:>9.4f}{c.support:>14,}"
        for name, c in (("background", background), ("nucleus", nucleus))
    ]
    return lines


def best_median_worst(evaluation: Evaluation) -> dict[str, ImageScore]:
    """Picks three images by pixel IoU; fewer where there are fewer images."""
    ranked = evaluation.ranked()
    places = {len(ranked) // 2: "median", len(ranked) - 1: "worst", 0: "best"}
    return {places[place]: ranked[place] for place in sorted(places)}
