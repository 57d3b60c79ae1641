"""Calibration by predicted probability, and AUROC beside those of the position and the length alone."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from pqm_fast.evaluate.aggregate import log_sigmoid
from pqm_fast.evaluate.positions import position_bins, step_positions
from pqm_fast.evaluate.step_metrics import Trajectories, flatten, share_in_order

BINS = 10


def calibration(scores: Trajectories, labels: Trajectories) -> dict[str, Any]:
    """The reliability curve of sigmoid(q) as the probability that a step is correct.

    The curve has ten bins (low, high] of equal width, without the empty ones, over all steps that have both a score and
    a label.

    Returns:
        `bins`: {low, high, predicted (mean sigmoid), correct (mean label), steps} each; `error`: the expected
        calibration error (ECE), the mean over steps of |predicted - correct| of their bin; `brier`: the mean of
        (sigmoid - label)^2. `error` and `brier` are None without steps.

    Raises:
        PQMError: scores and labels differ in shape, or a score is NaN.
    """
    q, label, _ = flatten(scores, labels)
    used = ~(np.isnan(q) | np.isnan(label))
    q, y = q[used], label[used]
    bins = reliability_bins(q, y)
    return {
        "bins": bins,
        "error": sum(b["steps"] * abs(b["predicted"] - b["correct"]) for b in bins) / q.size if q.size else None,
        "brier": float(((np.exp(log_sigmoid(q)) - y) ** 2).mean()) if q.size else None,
    }


def reliability_bins(logit: np.ndarray, label: np.ndarray) -> list[dict[str, Any]]:
    """The `bins` of `calibration`, from [steps] logits and labels without a missing one."""
    p = np.exp(log_sigmoid(logit))
    bin_of_step = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], p)
    bins = []
    for k in np.unique(bin_of_step):
        in_bin = bin_of_step == k
        predicted, correct, steps = float(p[in_bin].mean()), float(label[in_bin].mean()), int(in_bin.sum())
        edges = {"low": k / BINS, "high": (k + 1) / BINS}
        bins.append({**edges, "predicted": predicted, "correct": correct, "steps": steps})
    return bins


def auroc_by_position(
    scores: Trajectories, labels: Trajectories, lengths: Sequence[Sequence[int]] | None = None
) -> dict[str, Any]:
    """AUROC among steps at similar positions, beside that of a score that knows only the position or only the length.

    Where later steps are wrong more often, a score that merely falls with the position has an AUROC above 0.5 over all
    steps; among steps at one position it has exactly 0.5. The same holds for longer steps. Whatever a model knows
    beyond that shows in the rows, and among steps at one position or of one length.

    Args:
        scores: as for `step_metrics`.
        labels: as for `step_metrics`.
        lengths: the lengths of the steps, in the same shape, in any unit.

    Returns:
        `all` and `rows`: {first, last (positions from 1), correct, wrong (steps), auroc, position_only (earlier is
        better), length_only (shorter is better)} each, `rows` for the positions 1, 2, 3-4, 5-8, ...; `same_position`
        and `same_length`: the share in order among the (correct, wrong) pairs of steps at the same position, or of the
        same length, where a score that knows only the position or the length has 0.5. Figures are None where they are
        undefined, and those that need `lengths` are None without them.

    Raises:
        PQMError: scores and labels differ in shape, or a score is NaN.
    """
    q, label, trajectory = flatten(scores, labels)
    position = step_positions(trajectory, len(scores))
    used = ~(np.isnan(q) | np.isnan(label))
    q, correct, position = q[used], label[used] >= 0.5, position[used]
    length = None if lengths is None else np.array(list(chain.from_iterable(lengths)), dtype=np.int64)[used]

    def row(first: int, last: int) -> dict[str, Any]:
        in_row = (position >= first) & (position <= last)
        one_group = np.zeros(int(in_row.sum()), dtype=int)
        return {
            "first": first,
            "last": last,
            "correct": int(correct[in_row].sum()),
            "wrong": int((~correct[in_row]).sum()),
            "auroc": share_in_order(q[in_row], correct[in_row], one_group),
            "position_only": share_in_order(-position[in_row], correct[in_row], one_group),
            "length_only": None if length is None else share_in_order(-length[in_row], correct[in_row], one_group),
        }

    longest = int(position.max(initial=0))
    return {
        "all": row(1, longest),
        "rows": [row(first, last) for first, last in position_bins(longest)],
        "same_position": share_in_order(q, correct, position),
        "same_length": None if length is None else share_in_order(q, correct, length),
    }
