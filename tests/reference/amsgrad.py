"""AMSGrad by Keras's formula, in float64 and one scalar at a time."""

import math


def amsgrad(gradients, rate, b1=0.9, b2=0.999, eps=1e-7, start=0.0):
    """Returns the parameter after each step."""
    value, m, v, v_max = start, 0.0, 0.0, 0.0
    path = []
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        v_max = max(v_max, v)
        corrected = rate * math.sqrt(1 - b2**t) / (1 - b1**t)
        value -= corrected * m / (math.sqrt(v_max) + eps)
        path.append(value)
    return path
