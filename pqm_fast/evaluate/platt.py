"""Platt scaling: the line that turns scores into the logits of probabilities, by maximum likelihood."""

import math
from collections.abc import Callable

import numpy as np

from pqm_fast.errors import PQMError
from pqm_fast.evaluate.aggregate import log_sigmoid

STEPS = 100  # of Newton's method; about 10 are needed, and 30 for a million separable steps


def platt_scaling(score: np.ndarray, label: np.ndarray) -> tuple[float, float] | None:
    """(slope, offset): sigmoid(slope * score + offset) as the probability that an item is correct.

    A logistic regression of the labels on the scores (Platt 1999, "Probabilistic outputs for support vector machines"),
    with his targets in place of the labels 1 and 0: (n + 1) / (n + 2) with n correct items, and 1 / (m + 2) with m
    wrong ones. So the optimum is finite where a threshold separates the classes. A soft label y counts as the share y
    of a correct item and 1 - y of a wrong one. The slope is never negative, as the order of the scores is that of the
    model: it is 0 if the scores of the correct items are not higher, and then all probabilities are equal.

    Args:
        score: [items] finite, float64.
        label: [items] in [0, 1], float64.

    Returns:
        None without a correct item (label >= 0.5) or without a wrong one.

    Raises:
        PQMError: a score is NaN or infinite.
    """
    if not np.isfinite(score).all():
        raise PQMError(f"scores must be finite, found {score[~np.isfinite(score)][0]}: check the model's output")
    correct = label >= 0.5
    if correct.all() or not correct.any():
        return None
    num_correct = float(label.sum())
    low, high = 1 / (label.size - num_correct + 2), (num_correct + 1) / (num_correct + 2)
    target = low + label * (high - low)
    share = float(target.mean())
    flat = math.log(share / (1 - share))
    if (score == score[0]).all():
        return 0.0, flat
    unit = float(np.abs(score).max())
    x = score / unit
    centre, scale = float(x.mean()), float(x.std())
    x = (x - centre) / scale
    if (x @ (target - share)) <= 0:  # the derivative by the slope, at slope 0; the likelihood is concave
        return 0.0, flat
    slope, offset = _most_likely(x, target, flat)
    return float(slope / scale / unit), float(offset - slope / scale * centre)


def _most_likely(x: np.ndarray, target: np.ndarray, flat: float) -> np.ndarray:
    """[slope, offset] of the smallest cross entropy, by Newton's method from [0, `flat`].

    A step is halved until it descends. The cross entropy is strictly convex, so this converges from anywhere.
    """
    columns = np.stack([x, np.ones_like(x)])

    def cross_entropy(line: np.ndarray) -> float:
        logit = line @ columns
        return float((1 - target) @ logit - log_sigmoid(logit).sum())  # log(1 - p) is log p - logit

    line = np.array([0.0, flat])
    value = cross_entropy(line)
    for _ in range(STEPS):
        logit = line @ columns
        log_p = log_sigmoid(logit)
        p, not_p = np.exp(log_p), np.exp(log_p - logit)
        gradient = columns @ (p - target)
        step = -np.linalg.solve((columns * (p * not_p)) @ columns.T, gradient)
        line, value = _descend(cross_entropy, line, value, step, slope=float(gradient @ step))
        if np.abs(step).max() <= 1e-12 * (1 + np.abs(line).max()):
            break
    return line


def _descend(
    function: Callable[[np.ndarray], float], line: np.ndarray, value: float, step: np.ndarray, slope: float
) -> tuple[np.ndarray, float]:
    rounding = 1e-12 * abs(value)  # near the optimum a step changes less than this, and is right
    for halvings in range(STEPS):
        share = 0.5**halvings
        new_line = line + share * step
        new_value = function(new_line)
        if new_value <= value + 1e-4 * share * slope + rounding:
            return new_line, new_value
    return line, value
