"""Scores -> a table to read."""

from __future__ import annotations

from nucseg_jax.evaluation.evaluate import Evaluation, ImageScore
from nucseg_jax.evaluation.instance_metrics import AP_NAMES

PIXEL_ROWS = {
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
INSTANCE_ROWS = {
    "mean_ap": "mean AP (IoU .50:.05:.95)",
    "ap50": "AP at IoU .50",
    "ap75": "AP at IoU .75",
    "ap90": "AP at IoU .90",
    "f1_50": "F1 at IoU .50",
    "precision_50": "precision at IoU .50",
    "recall_50": "recall at IoU .50",
    "segmentation_quality": "segmentation quality",
    "panoptic_quality": "panoptic quality",
}


def format_table(evaluation: Evaluation) -> str:
    """Formats the metrics of pixels, then those of nuclei, and what there is by class.

    Where the truth tells no nuclei apart, a line says so in place of their metrics.
    """
    lines = [
        f"{len(evaluation.scores)} images, threshold {evaluation.threshold:.3f}",
        "",
        *_metric_lines(
            "pixel metric",
            PIXEL_ROWS,
            evaluation.pooled(),
            evaluation.per_image_mean(),
        ),
        "",
        *_class_lines(evaluation),
        "",
        *_instance_lines(evaluation),
    ]
    return "\n".join(lines)


def _metric_lines(
    title: str, rows: dict[str, str], pooled: dict[str, float], mean: dict[str, float]
) -> list[str]:
    return [
        f"{title:<34}{'pooled':>9}{'per image':>11}",
        *(f"{rows[name]:<34}{pooled[name]:>9.4f}{mean[name]:>11.4f}" for name in rows),
    ]


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


def _instance_lines(evaluation: Evaluation) -> list[str]:
    if not evaluation.instance_counts:
        return ["no instance metrics: in a truth of masks, nuclei that touch are one"]
    pooled, mean = evaluation.pooled_instances(), evaluation.mean_instances()
    lines = _metric_lines("instance metric", INSTANCE_ROWS, pooled, mean)
    lines += [
        f"{'count error, nuclei an image':<43}{mean['count_error']:>11.2f}",
        f"{'the same with sign, + is too many':<43}"
        f"{mean['signed_count_error']:>+11.2f}",
        f"{pooled['num_true']:,} nuclei, {pooled['num_pred']:,} predicted",
    ]
    return lines + _modality_lines(evaluation)


def _modality_lines(evaluation: Evaluation) -> list[str]:
    """Lines of a table by modality, if the index names any."""
    groups = evaluation.by_modality()
    if not groups:
        return []
    header = f"{'modality, per image':<24}{'images':>7}{'pixel IoU':>11}"
    lines = ["", f"{header}{'mean AP':>9}{'AP50':>8}{'count error':>13}"]
    lines += [
        f"{name:<24}{g['num_images']:>7}{g['pixel_iou']:>11.4f}{g['mean_ap']:>9.4f}"
        f"{g['ap50']:>8.4f}{g['count_error']:>13.2f}"
        for name, g in groups.items()
    ]
    return lines


def best_median_worst(evaluation: Evaluation) -> dict[str, ImageScore]:
    """Picks three images by `Evaluation.ranked`; fewer where there are fewer images."""
    ranked = evaluation.ranked()
    places = {len(ranked) // 2: "median", len(ranked) - 1: "worst", 0: "best"}
    return {places[place]: ranked[place] for place in sorted(places)}


def ap_curves(evaluation: Evaluation) -> dict[str, list[float]]:
    """Returns the per-image mean of instance AP at each IoU threshold, by title.

    First of all images, then of each modality where there are several.
    """
    means = {
        f"all {len(evaluation.instance_counts)} images": evaluation.mean_instances()
    }
    groups = evaluation.by_modality()
    if len(groups) > 1:
        means |= {f"{name} ({g['num_images']})": g for name, g in groups.items()}
    return {title: [mean[name] for name in AP_NAMES] for title, mean in means.items()}
