"""Step figures that need a threshold, at a threshold that was chosen on other questions.

Comparative losses leave the level of the scores free: at the threshold 0 a good ranking can call every step wrong.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pqm_fast.errors import PQMError
from pqm_fast.evaluate.calibrate import ON_FOLDS, ON_OTHERS, below, candidates, cross, deal, right_between, share_inside
from pqm_fast.evaluate.step_metrics import Steps, Trajectories, first_flagged, flatten, threshold_metrics

# A figure, from the numbers of correct and of wrong steps below the threshold, and the numbers of both in all.
Counted = Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]
OF_STEPS: dict[str, Counted] = {
    "step_accuracy": lambda c, w, correct, wrong: (correct - c + w) / (correct + wrong),
    "balanced_accuracy": lambda c, w, correct, wrong: ((correct - c) / correct + w / wrong) / 2,
    "prm_score": lambda c, w, correct, wrong: (correct - c) / (2 * correct + wrong - c - w) + w / (c + w + wrong),
}


@dataclass(frozen=True, slots=True)
class StepThresholds:
    """The thresholds at which each figure is highest on other questions, and which of them each trajectory uses."""

    chosen: dict[str, list[float]]
    """The thresholds of each figure."""
    which: np.ndarray
    """[trajectories] int64, index into each list of `chosen`."""
    calibrated_on: str
    """The questions that the thresholds were chosen on, in words."""

    def of(self, trajectories: Sequence[int]) -> "StepThresholds":
        """The thresholds of some of the trajectories."""
        return StepThresholds(self.chosen, self.which[list(trajectories)], self.calibrated_on)

    def each(self, figure: str) -> np.ndarray:
        """[trajectories] float64: the threshold of each trajectory for a figure."""
        return np.array(self.chosen[figure])[self.which]


def cross_thresholds(scores: Trajectories, labels: Trajectories, questions: Sequence[str]) -> StepThresholds | None:
    """Thresholds for each fifth of the questions, from the other four (`calibrate.deal`).

    None if four of the fifths together have no correct or no wrong step. `scores`, `labels` and the errors are those of
    `step_metrics`; `questions` has the text, or a name, of each trajectory's question.
    """
    return cross_thresholds_of(flatten(scores, labels), questions)


def cross_thresholds_of(steps: Steps, questions: Sequence[str]) -> StepThresholds | None:
    """`cross_thresholds` of the columns that `flatten` makes."""
    folds = deal(questions)
    best_by_fold = cross(folds, _Steps(steps, len(questions)).best)
    return None if best_by_fold is None else StepThresholds(_by_figure(best_by_fold), folds, ON_FOLDS)


def thresholds_from(scores: Trajectories, labels: Trajectories, trajectories: int) -> StepThresholds:
    """Thresholds from the scores and labels of other questions.

    Args:
        scores: of the other questions, as for `step_metrics`.
        labels: of the other questions, as for `step_metrics`.
        trajectories: the number of trajectories that the thresholds are for.

    Raises:
        PQMError: as `step_metrics`; also if there is no correct or no wrong step.
    """
    steps = _Steps(flatten(scores, labels), len(scores))
    best_thresholds = steps.best(np.ones(len(scores), dtype=bool))
    if best_thresholds is None:
        num_correct, num_wrong = int(steps.correct.sum()), int((~steps.correct).sum())
        raise PQMError(f"a threshold needs correct and wrong steps, found {num_correct} and {num_wrong}")
    return StepThresholds(_by_figure([best_thresholds]), np.zeros(trajectories, dtype=np.int64), ON_OTHERS)


def _by_figure(best_by_fold: list[dict[str, float]]) -> dict[str, list[float]]:
    return {figure: [best[figure] for best in best_by_fold] for figure in best_by_fold[0]}


# {figure: the figure whose best threshold it uses}
TAKEN_AT = {
    "step_accuracy": "step_accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "accuracy_on_correct": "balanced_accuracy",
    "accuracy_on_wrong": "balanced_accuracy",
    "first_error_accuracy": "first_error_accuracy",
}


def calibrated_metrics(
    scores: Trajectories, labels: Trajectories, thresholds: StepThresholds | None
) -> dict[str, float | None]:
    """The figures of `step_metrics` that need a threshold, at thresholds chosen on other questions.

    Returns:
        `step_accuracy_calibrated`, `balanced_accuracy_calibrated` and `first_error_accuracy_calibrated`, each at the
        threshold with the highest value of that figure; `accuracy_on_correct_calibrated` and
        `accuracy_on_wrong_calibrated`, at the threshold of `balanced_accuracy`. None where undefined, and all None
        without `thresholds`.
    """
    if thresholds is None:
        return dict.fromkeys(map(calibrated, TAKEN_AT))
    steps = flatten(scores, labels)
    at_best = {name: threshold_metrics(steps, len(scores), thresholds.each(name)) for name in set(TAKEN_AT.values())}
    return {calibrated(figure): at_best[name][figure] for figure, name in TAKEN_AT.items()}


def calibrated(figure: str) -> str:
    """The name of a figure at thresholds from other questions."""
    return f"{figure}_calibrated"


class _Steps:
    """The columns of all steps, and the best thresholds over some of the trajectories."""

    def __init__(self, steps: Steps, trajectories: int):
        q, label, trajectory = steps
        labelled = ~np.isnan(label)
        used = labelled & ~np.isnan(q)
        error = first_flagged(labelled & (label < 0.5), trajectory, trajectories)
        self.bounds = right_between(q, used, trajectory, error)
        self.seen = np.bincount(trajectory[used], minlength=trajectories) > 0
        self.q, self.correct, self.trajectory = q[used], label[used] >= 0.5, trajectory[used]

    def best(self, mask: np.ndarray) -> dict[str, float] | None:
        """For each figure, the lowest of the best thresholds over the trajectories where `mask` is set.

        None if they have no correct or no wrong steps.
        """
        selected = mask[self.trajectory]
        q, correct = self.q[selected], self.correct[selected]
        if correct.all() or not correct.any():
            return None
        thresholds, correct_q, wrong_q = candidates(q), q[correct], q[~correct]
        counted = below(correct_q, thresholds), below(wrong_q, thresholds), correct_q.size, wrong_q.size
        best = {figure: float(thresholds[np.argmax(values(*counted))]) for figure, values in OF_STEPS.items()}
        bounds = self.bounds[mask & self.seen]
        thresholds = candidates(bounds)
        return {**best, "first_error_accuracy": float(thresholds[np.argmax(share_inside(bounds, thresholds))])}
