"""Step figures by the position of the step, and first errors by where they are."""

from typing import Any

import numpy as np

from pqm_fast.evaluate.step_metrics import Trajectories, first_flagged, flatten, share_in_order, threshold_metrics
from pqm_fast.evaluate.step_thresholds import TAKEN_AT, StepThresholds, calibrated


def step_positions(trajectory: np.ndarray, trajectories: int) -> np.ndarray:
    """[steps] int64: the number of each step in its trajectory, from 1. `trajectory` is the column of `flatten`."""
    counts = np.bincount(trajectory, minlength=trajectories)
    return np.arange(trajectory.size) - np.repeat(np.cumsum(counts) - counts, counts) + 1


def position_bin(position: int) -> tuple[int, int]:
    """The one of the bins 1, 2, 3-4, 5-8, ... that holds a position, as (first, last)."""
    doublings = (position - 1).bit_length()
    return 2**doublings // 2 + 1, 2**doublings


def position_bins(longest: int) -> list[tuple[int, int]]:
    """The bins of the positions up to the longest one, where the last bin ends."""
    bins = dict.fromkeys(map(position_bin, range(1, longest + 1)))
    return [(first, min(last, longest)) for first, last in bins]


def by_position(scores: Trajectories, labels: Trajectories, thresholds: StepThresholds | None = None) -> dict[str, Any]:
    """Where in a solution a model is wrong: about the steps at a position, and about first errors there.

    Args:
        scores: as for `step_metrics`.
        labels: as for `step_metrics`.
        thresholds: of each trajectory, chosen on other questions. Without them the calibrated figures are None.

    Returns:
        `rows`, one for each of `position_bins` (AUROC by position: `auroc_by_position`): {first, last (positions from
        1), correct, wrong (steps), pair_accuracy (the share in order among the pairs of a wrong step at these
        positions and a correct step of the same trajectory, wherever that is), accuracy_on_correct_calibrated and
        accuracy_on_wrong_calibrated, first_errors (trajectories whose first wrong step is at these positions) and
        first_error_accuracy_calibrated (the share of those that are found)} each. `no_error`: {trajectories,
        first_error_accuracy_calibrated} of the trajectories without a wrong step: the share in which no step is called
        wrong. The calibrated figures are those of `calibrated_metrics`, at the same thresholds. None where undefined.

    Raises:
        PQMError: scores and labels differ in shape, or a score is NaN.
    """
    q, label, trajectory = flatten(scores, labels)
    labelled, correct = ~np.isnan(label), label >= 0.5
    used = labelled & ~np.isnan(q)
    position = step_positions(trajectory, len(scores))
    first_error = first_flagged(labelled & ~correct, trajectory, len(scores))
    has_steps = np.bincount(trajectory[used], minlength=len(scores)) > 0
    error_position = np.where(first_error < 0, 0, np.r_[position, 0][first_error])

    def judged(figure: str, steps: np.ndarray) -> float | None:
        """A figure of `threshold_metrics` over some of the steps."""
        if thresholds is None:
            return None
        columns = q, np.where(steps, label, np.nan), trajectory
        return threshold_metrics(columns, len(scores), thresholds.each(TAKEN_AT[figure]))[figure]

    def row(first: int, last: int) -> dict[str, Any]:
        in_row = (position >= first) & (position <= last)
        error_in_row = (error_position >= first) & (error_position <= last)
        compared = used & (correct | in_row)
        return {
            "first": first,
            "last": last,
            "correct": int((used & correct & in_row).sum()),
            "wrong": int((used & ~correct & in_row).sum()),
            "pair_accuracy": share_in_order(q[compared], correct[compared], trajectory[compared]),
            calibrated("accuracy_on_correct"): judged("accuracy_on_correct", in_row),
            calibrated("accuracy_on_wrong"): judged("accuracy_on_wrong", in_row),
            "first_errors": int((error_in_row & has_steps).sum()),
            calibrated("first_error_accuracy"): judged("first_error_accuracy", error_in_row[trajectory]),
        }

    return {
        "rows": [row(first, last) for first, last in position_bins(int(position[labelled].max(initial=0)))],
        "no_error": {
            "trajectories": int(((first_error < 0) & has_steps).sum()),
            calibrated("first_error_accuracy"): judged("first_error_accuracy", (first_error < 0)[trajectory]),
        },
    }
