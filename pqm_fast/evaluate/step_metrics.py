"""Measures how well Q-values separate correct steps from wrong ones. Every figure takes at most n log n time."""

import math
from collections.abc import Sequence
from itertools import chain

import numpy as np

from pqm_fast.errors import PQMError

Trajectories = Sequence[Sequence[float | None]]
Threshold = float | np.ndarray  # one for all, or [trajectories]
Steps = tuple[np.ndarray, np.ndarray, np.ndarray]  # the columns of `flatten`


def step_metrics(scores: Trajectories, labels: Trajectories, threshold: Threshold = 0.0) -> dict[str, float | None]:
    """Metrics over all steps that have both a score and a label (None marks a missing one).

    A step counts as correct iff its label is >= 0.5, and as predicted correct iff q >= `threshold`.

    Args:
        scores: one list of Q-values per trajectory, one entry per step.
        labels: the labels in [0, 1], in the same shape.
        threshold: fixed beforehand, never picked on the data it is scored on; one number, or one for each trajectory.

    Returns:
        A dict; an undefined figure (for example AUROC without a wrong step) is None.
        `step_accuracy`, `accuracy_on_correct`, `accuracy_on_wrong`: share of steps predicted as labelled;
        `balanced_accuracy`: the mean of the last two; 0.5 for an uninformed score, however rare wrong steps are.
        `auroc`: over all steps, ties count half.
        `pair_accuracy`: share of (correct, wrong) pairs within one trajectory with q_correct > q_wrong, ties
        half.
        `first_error_accuracy`: share of trajectories whose first step predicted wrong is the first one
        labelled wrong, or that have neither. A first error that has no score counts as missed.
        `mean_gap`: mean q of correct steps minus mean q of wrong steps.
        `trajectories`, `steps`: how many the figures are computed from; `share_correct`: the share of correct steps.

    Raises:
        PQMError: scores and labels differ in shape, or a score is NaN.
    """
    steps = flatten(scores, labels)
    q, label, trajectory = steps
    used = ~(np.isnan(label) | np.isnan(q))
    q, correct, trajectory = q[used], label[used] >= 0.5, trajectory[used]
    gap = (_mean(q[correct]), _mean(q[~correct]))
    at_threshold = threshold_metrics(steps, len(scores), threshold)
    first_error = at_threshold.pop("first_error_accuracy")
    return {
        **at_threshold,
        "auroc": share_in_order(q, correct, np.zeros_like(trajectory)),
        "pair_accuracy": share_in_order(q, correct, trajectory),
        "first_error_accuracy": first_error,
        "mean_gap": None if gap[0] is None or gap[1] is None else gap[0] - gap[1],
        "trajectories": int((np.bincount(trajectory, minlength=len(scores)) > 0).sum()),
        "steps": int(used.sum()),
        "share_correct": _mean(correct),
    }


def threshold_metrics(steps: Steps, trajectories: int, threshold: Threshold) -> dict[str, float | None]:
    """The figures of `step_metrics` that depend on the threshold.

    Args:
        steps: the columns of `flatten`.
        trajectories: the number of trajectories.
        threshold: as in `step_metrics`.
    """
    q, label, trajectory = steps
    labelled = ~np.isnan(label)
    used = labelled & ~np.isnan(q)
    correct, passed = label >= 0.5, q >= of_each_step(threshold, trajectory)
    true_error, predicted_error = first_errors(steps, trajectories, threshold)
    has_steps = np.bincount(trajectory[used], minlength=trajectories) > 0
    hit, correct = (passed == correct)[used], correct[used]
    on_correct, on_wrong = _mean(hit[correct]), _mean(hit[~correct])
    return {
        "step_accuracy": _mean(hit),
        "balanced_accuracy": None if on_correct is None or on_wrong is None else (on_correct + on_wrong) / 2,
        "accuracy_on_correct": on_correct,
        "accuracy_on_wrong": on_wrong,
        "first_error_accuracy": _mean((true_error == predicted_error)[has_steps]),
    }


def first_errors(steps: Steps, trajectories: int, threshold: Threshold) -> tuple[np.ndarray, np.ndarray]:
    """[trajectories] int64 twice: the flat index of each trajectory's first step labelled wrong, and of its first step
    predicted wrong among those with a label; -1 where there is none. The arguments are those of `threshold_metrics`."""
    q, label, trajectory = steps
    labelled = ~np.isnan(label)
    is_called = labelled & (q < of_each_step(threshold, trajectory))  # never a step without a score: NaN < x is false
    return (
        first_flagged(labelled & (label < 0.5), trajectory, trajectories),
        first_flagged(is_called, trajectory, trajectories),
    )


def of_each_step(threshold: Threshold, trajectory: np.ndarray) -> Threshold:
    """The threshold of each step's trajectory, or the one for all."""
    return threshold[trajectory] if isinstance(threshold, np.ndarray) else threshold


def flat_floor(labels: Trajectories) -> float:
    """The value of the `rank` loss while all C correct steps score alike, far above the wrong ones.

    It is log(C!) / (C + [there is a wrong step]), averaged over the trajectories. A trajectory without labelled steps
    adds 0, as it does to the loss. Steps labelled None are left out.
    """
    total = 0.0
    for trajectory in labels:
        is_correct = [label >= 0.5 for label in trajectory if label is not None]
        correct = sum(is_correct)
        if correct:
            total += math.lgamma(correct + 1) / (correct + (correct < len(is_correct)))
    return total / max(len(labels), 1)


def flatten(scores: Trajectories, labels: Trajectories) -> Steps:
    """The columns of all steps: q and label ([steps] float64, NaN where missing), and the index of the trajectory
    ([steps] int64).

    Raises:
        PQMError: scores and labels differ in shape, or a score is NaN.
    """
    if len(scores) != len(labels):
        raise PQMError(f"{len(scores)} trajectories of scores but {len(labels)} of labels: pass one for each")
    lengths = np.fromiter(map(len, scores), dtype=np.int64, count=len(scores))
    differ = np.flatnonzero(lengths != np.fromiter(map(len, labels), dtype=np.int64, count=len(labels)))
    if differ.size:
        i = int(differ[0])
        raise PQMError(f"trajectory {i} has {len(scores[i])} scores but {len(labels[i])} labels: pass one per step")
    flat = list(chain.from_iterable(scores))
    q = np.array(flat, dtype=np.float64)  # numpy turns None into NaN
    if any(flat[i] is not None for i in np.flatnonzero(np.isnan(q))):
        raise PQMError("a step score is NaN: check the model's output, and pass None for steps without a score")
    label = np.array(list(chain.from_iterable(labels)), dtype=np.float64)
    return q, label, np.repeat(np.arange(len(scores)), lengths)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None


def first_flagged(flag: np.ndarray, trajectory: np.ndarray, count: int) -> np.ndarray:
    """[count] flat index of each trajectory's first flagged step, -1 where there is none."""
    first = np.full(count, -1)
    hits = np.flatnonzero(flag)[::-1]
    first[trajectory[hits]] = hits  # the last write, which is the earliest step, remains
    return first


def share_in_order(q: np.ndarray, correct: np.ndarray, group: np.ndarray) -> float | None:
    """Share of (correct, wrong) pairs within a group with q_correct > q_wrong; AUROC for one group."""
    if not q.size:
        return None
    order = np.lexsort((q, group))
    q, correct, group = q[order], correct[order], group[order]
    new_group = np.r_[True, group[1:] != group[:-1]]
    new_value = new_group | np.r_[True, q[1:] != q[:-1]]
    group_start, value_start = np.flatnonzero(new_group), np.flatnonzero(new_value)
    wrong = np.r_[0, np.cumsum(~correct)]  # wrong[i]: wrong steps before sorted position i
    before_group = wrong[group_start][np.cumsum(new_group) - 1]
    value_end = np.r_[value_start[1:], q.size]
    run = np.cumsum(new_value) - 1
    below, not_above = wrong[value_start][run] - before_group, wrong[value_end][run] - before_group
    in_group = wrong[np.r_[group_start[1:], q.size]][np.cumsum(new_group) - 1] - before_group
    pairs = int(in_group[correct].sum())
    return float((below + not_above)[correct].sum() / 2 / pairs) if pairs else None
