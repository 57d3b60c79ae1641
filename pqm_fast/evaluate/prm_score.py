"""PRMBench's figure (arXiv 2501.03124)."""

import numpy as np

from pqm_fast.evaluate.step_metrics import Threshold, Trajectories, flatten, of_each_step


def prm_score(scores: Trajectories, labels: Trajectories, threshold: Threshold = 0.0) -> dict[str, float | None]:
    """The mean of two F1 scores over steps. Arguments and errors as `step_metrics`.

    Returns:
        `f1_correct`: F1 with the correct steps as the class to find (predicted: q >= `threshold`); `f1_wrong`: with the
        wrong ones; `prm_score`: their mean. Each is None where undefined: no step of the class.
    """
    q, label, trajectory = flatten(scores, labels)
    used = ~(np.isnan(q) | np.isnan(label))
    predicted, correct = (q >= of_each_step(threshold, trajectory))[used], label[used] >= 0.5
    one, two = _f1(predicted, correct), _f1(~predicted, ~correct)
    mean = None if one is None or two is None else (one + two) / 2
    return {"f1_correct": one, "f1_wrong": two, "prm_score": mean}


def _f1(predicted: np.ndarray, actual: np.ndarray) -> float | None:
    if not actual.any():
        return None
    return float(2 * (predicted & actual).sum() / (predicted.sum() + actual.sum()))
