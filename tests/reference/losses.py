"""Losses from their formulas, in float64 and on probabilities."""

import numpy as np


def sigmoid(logits):
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def binary_cross_entropy(probs, mask):
    probs = np.clip(np.asarray(probs, np.float64), 1e-300, 1 - 1e-16)
    return -np.mean(mask * np.log(probs) + (1 - mask) * np.log1p(-probs))


def soft_dice_loss(probs, mask, smooth=1.0):
    losses = []
    for target in range(probs.shape[-1]):
        p, y = np.asarray(probs[..., target], np.float64), mask[..., target]
        losses.append(1 - (2 * (p * y).sum() + smooth) / (p.sum() + y.sum() + smooth))
    return np.mean(losses)
