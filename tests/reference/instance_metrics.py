"""Instance metrics in float64, one nucleus at a time, written from their definitions.

Truth and prediction are label images [H, W]; 0 is background.
"""

import fractions

import numpy as np


def ids_of(label_image):
    return sorted(set(np.ravel(label_image).tolist()) - {0})


def exact_iou(true_labels, pred_labels, true_id, pred_id):
    """Intersection over union of two nuclei, as a fraction."""
    true, pred = np.equal(true_labels, true_id), np.equal(pred_labels, pred_id)
    return fractions.Fraction(int((true & pred).sum()), int((true | pred).sum()))


def all_ious(true_labels, pred_labels):
    """Truth's id -> prediction's id -> IoU, overlapping or not."""
    return {
        i: {j: exact_iou(true_labels, pred_labels, i, j) for j in ids_of(pred_labels)}
        for i in ids_of(true_labels)
    }


def best_matching(ious, threshold):
    """Tries every one-to-one matching: the most pairs, then the highest sum of IoU.

    Returns a dict of true to predicted ids. A threshold is a fraction or a float.
    """
    if not ious:
        return {}
    (true_id, row), *rest = ious.items()
    rest = dict(rest)
    candidates = [best_matching(rest, threshold)]
    for pred_id, iou in row.items():
        if iou > threshold:
            others = {
                i: {j: value for j, value in r.items() if j != pred_id}
                for i, r in rest.items()
            }
            candidates.append({true_id: pred_id} | best_matching(others, threshold))
    return max(candidates, key=lambda m: (len(m), sum_iou(m, ious)))


def sum_iou(matching, ious):
    return sum(ious[i][j] for i, j in matching.items())


def metrics(true_labels, pred_labels, threshold):
    """All values at one IoU threshold, in Python floats."""
    ious = all_ious(true_labels, pred_labels)
    matching = best_matching(ious, threshold)
    tp = len(matching)
    fn, fp = len(ids_of(true_labels)) - tp, len(ids_of(pred_labels)) - tp
    at_zero = 1.0 if tp + fp + fn == 0 else 0.0

    def divide(part, whole):
        return float(part) / float(whole) if whole else at_zero

    precision, recall = divide(tp, tp + fp), divide(tp, tp + fn)
    return {
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "average_precision": divide(tp, tp + fp + fn),
        "precision": precision,
        "recall": recall,
        "f1": divide(2 * precision * recall, precision + recall),
        "segmentation_quality": divide(sum_iou(matching, ious), tp),
        # Equation 1 of Kirillov et al., Panoptic segmentation, 2019.
        "panoptic_quality": divide(sum_iou(matching, ious), tp + fp / 2 + fn / 2),
    }
