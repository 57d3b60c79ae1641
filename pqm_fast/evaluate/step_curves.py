"""Where step scores hold: calibration by predicted probability, and AUROC beside what position and length give."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from pqm_fast.evaluate.aggregate import log_sigmoid
from pqm_fast.evaluate.step_metrics import Trajectories, flatten, share_in_order

BINS = 10


def calibration(scores: Trajectories, labels: Trajectories) -> dict[str, Any]:
    """The reliability curve of sigmoid(q) as the probability that a step is correct.

    Ten bins (low, high] of equal width, empty ones left out; over all steps that have both a score and a label.

    Returns:
        `bins`: {low, high, predicted (mean sigmoid), correct (mean label), steps} each; `error`: the mean over steps
        of |predicted - correct| of their bin (ECE); `brier`: mean of (sigmoid - label)^2. The two are None without
        steps.

    Raises:
        PQMError: scores and labels differ in shape, or a score is NaN.
    """
    q, label, _ = flatten(scores, labels)
    used = ~(np.isnan(q) | np.isnan(label))
    p, y = np.exp(log_sigmoid(q[used])), label[used]
    own = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], p)
    bins, error = [], 0.0
    for k in np.unique(own):
        predicted, correct, steps = float(p[own == k].mean()), float(y[own == k].mean()), int((own == k).sum())
        error += steps * abs(predicted - correct) / p.size
        edges = {"low": k / BINS, "high": (k + 1) / BINS}
        bins.append({**edges, "predicted": predicted, "correct": correct, "steps": steps})
    return {
        "bins": bins,
        "error": error if p.size else None,
        "brier": float(((p - y) ** 2).mean()) if p.size else None,
    }


def auroc_by_position(
    scores: Trajectories, labels: Trajectories, lengths: Sequence[Sequence[int]] | None = None
) -> dict[str, Any]:
    """AUROC among steps at like positions, beside those of scores that know the position, or the length, alone.

    Where later steps are wrong more often, a score that only falls with the position has an AUROC above 0.5 over all
    steps; among steps at one position it has exactly that. In the same way for longer steps. What a model knows beyond
    it shows in the rows, and among steps of one position or one length.

    Args:
        scores, labels: as for `step_metrics`.
        lengths: of the steps, in the same shape, in any unit.

    Returns:
        `all` and `rows`: {first, last (positions from 1), correct, wrong (steps), auroc, position_only (earlier is
        better), length_only (shorter is better)} each, `rows` for the positions 1, 2, 3-4, 5-8, ...; `same_position`
        and `same_length`: the share of (correct, wrong) pairs of steps at the same position, of the same length, that
        are in order, for which `position_only`, `length_only` would be 0.5. None where undefined, as what needs
        `lengths` is without them.

    Raises:
        PQMError: scores and labels differ in shape, or a score is NaN.
    """
    q, label, trajectory = flatten(scores, labels)
    counts = np.bincount(trajectory, minlength=len(scores))
    position = np.arange(q.size) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    used = ~(np.isnan(q) | np.isnan(label))
    q, correct, position = q[used], label[used] >= 0.5, position[used]
    length = None if lengths is None else np.array(list(chain.from_iterable(lengths)), dtype=np.int64)[used]

    def row(first: int, last: int) -> dict[str, Any]:
        own = (position >= first) & (position <= last)
        one = np.zeros(int(own.sum()), dtype=int)
        return {
            "first": first,
            "last": last,
            "correct": int(correct[own].sum()),
            "wrong": int((~correct[own]).sum()),
            "auroc": share_in_order(q[own], correct[own], one),
            "position_only": share_in_order(-position[own], correct[own], one),
            "length_only": None if length is None else share_in_order(-length[own], correct[own], one),
        }

    longest = int(position.max(initial=0))
    doublings = [(2**k // 2 + 1, 2**k) for k in range((longest - 1).bit_length() + 1)] if longest else []
    return {
        "all": row(1, longest),
        "rows": [row(first, min(last, longest)) for first, last in doublings],
        "same_position": share_in_order(q, correct, position),
        "same_length": None if length is None else share_in_order(q, correct, length),
    }
