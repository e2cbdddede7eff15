"""Pixel metrics in float64, one pixel at a time, written from their definitions.

Truth and prediction are binary arrays of one shape; 1 is foreground.
"""

import numpy as np


def count(foreground, mask):
    """Counts the four cases in Python integers."""
    counts = {"tp": 0, "fp": 0, "fn": 0, "tn": 0}
    for predicted, true in zip(np.ravel(foreground), np.ravel(mask), strict=True):
        if predicted:
            counts["tp" if true else "fp"] += 1
        else:
            counts["fn" if true else "tn"] += 1
    return counts


def metrics(foreground, mask):
    """All ratios; 0/0 is 1 if every pixel is right and else 0."""
    c = count(foreground, mask)
    at_zero = 1.0 if c["fp"] + c["fn"] == 0 else 0.0

    def divide(part, whole):
        return part / whole if whole else at_zero

    union = c["tp"] + c["fp"] + c["fn"]
    recall = divide(c["tp"], c["tp"] + c["fn"])
    specificity = divide(c["tn"], c["tn"] + c["fp"])
    return {
        "iou": divide(c["tp"], union),
        "f1": divide(2 * c["tp"], c["tp"] + union),
        "dice": divide(2 * c["tp"], c["tp"] + union),
        "precision": divide(c["tp"], c["tp"] + c["fp"]),
        "recall": recall,
        "specificity": specificity,
        "accuracy": divide(c["tp"] + c["tn"], sum(c.values())),
        "hard_mask_auc": (recall + specificity) / 2,
    }


def auc(probs, mask):
    """Chance that a foreground pixel scores above a background one; ties are half."""
    probs = np.asarray(probs, np.float64)
    foreground, background = probs[mask][:, None], probs[~mask][None, :]
    wins = (foreground > background) + 0.5 * (foreground == background)
    return float(wins.mean())


def pooled_iou(probs, mask, threshold):
    """IoU of the pixels whose probability is at least `threshold`."""
    foreground = np.asarray(probs, np.float64) >= threshold
    union = (foreground | mask).sum()
    return float((foreground & mask).sum() / union) if union else 0.0
