"""Step figures by the kind of error, as PRMBench has them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pqm_fast.evaluate.step_metrics import Trajectories, flatten, step_metrics


def by_type(
    scores: Trajectories, labels: Trajectories, types: Sequence[str], threshold: float = 0.0
) -> dict[str, dict[str, Any]]:
    """For each type, sorted: the result of `step_metrics` and that of `prm_score`. Arguments and errors as there."""
    found = {}
    for name in sorted(set(types)):
        own = [i for i, kind in enumerate(types) if kind == name]
        q, y = [scores[i] for i in own], [labels[i] for i in own]
        found[name] = step_metrics(q, y, threshold) | prm_score(q, y, threshold)
    return found


def prm_score(scores: Trajectories, labels: Trajectories, threshold: float = 0.0) -> dict[str, float | None]:
    """PRMBench's figure (arXiv 2501.03124): the mean of two F1 scores over steps.

    Returns:
        `f1_correct`: F1 with the correct steps as the class to find (predicted: q >= `threshold`); `f1_wrong`: with the
        wrong ones; `prm_score`: their mean. Each is None where undefined: no step of the class.
    """
    q, label, _ = flatten(scores, labels)
    used = ~(np.isnan(q) | np.isnan(label))
    predicted, correct = q[used] >= threshold, label[used] >= 0.5
    one, two = _f1(predicted, correct), _f1(~predicted, ~correct)
    mean = None if one is None or two is None else (one + two) / 2
    return {"f1_correct": one, "f1_wrong": two, "prm_score": mean}


def _f1(predicted: np.ndarray, actual: np.ndarray) -> float | None:
    if not actual.any():
        return None
    return float(2 * (predicted & actual).sum() / (predicted.sum() + actual.sum()))
