"""PRMScore, the figure of PRMBench (arXiv 2501.03124)."""

import numpy as np

from pqm_fast.evaluate.step_metrics import Steps, Threshold, Trajectories, flatten, of_each_step


def prm_score(scores: Trajectories, labels: Trajectories, threshold: Threshold = 0.0) -> dict[str, float | None]:
    """The mean of two F1 scores over steps. Arguments and errors are those of `step_metrics`.

    Returns:
        `f1_correct`: F1 with the correct steps as the class to find (predicted: q >= `threshold`); `f1_wrong`: F1 with
        the wrong steps as the class; `prm_score`: their mean. Each is None where its class has no step.
    """
    return prm_score_of(flatten(scores, labels), threshold)


def prm_score_of(steps: Steps, threshold: Threshold = 0.0) -> dict[str, float | None]:
    """`prm_score` of the columns that `flatten` makes."""
    q, label, trajectory = steps
    used = ~(np.isnan(q) | np.isnan(label))
    predicted, correct = (q >= of_each_step(threshold, trajectory))[used], label[used] >= 0.5
    f1_correct, f1_wrong = _f1(predicted, correct), _f1(~predicted, ~correct)
    mean = None if f1_correct is None or f1_wrong is None else (f1_correct + f1_wrong) / 2
    return {"f1_correct": f1_correct, "f1_wrong": f1_wrong, "prm_score": mean}


def _f1(predicted: np.ndarray, actual: np.ndarray) -> float | None:
    if not actual.any():
        return None
    return float(2 * (predicted & actual).sum() / (predicted.sum() + actual.sum()))
