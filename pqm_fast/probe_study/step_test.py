"""The tests with step labels: figures of steps, where a model is wrong, and first errors in ProcessBench's form."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pqm_fast.data.records import Record, first_wrong
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.calibrate import deal
from pqm_fast.evaluate.error_types import by_type, type_of
from pqm_fast.evaluate.positions import by_position
from pqm_fast.evaluate.prm_score import prm_score_of
from pqm_fast.evaluate.processbench import cross_calibrated
from pqm_fast.evaluate.step_metrics import first_errors, flatten, share_in_order, threshold_metrics
from pqm_fast.evaluate.step_thresholds import StepThresholds
from pqm_fast.probe_study.jackknife import numbered, pseudo_values
from pqm_fast.scoring.stored import Scores

Values = dict[str, np.ndarray | None]
"""{figure: [groups] pseudo-values}; None where the figure is undefined."""
STEP_FIGURES = {
    "auroc": "AUROC",
    "pair_accuracy": "pairs in order",
    "balanced_accuracy": "balanced accuracy",
    "prm_score": "PRMScore",
    "first_error_accuracy": "first error",
}
"""{figure: heading in tables}. All but the first two need a threshold, from the tuning questions."""
FIRST_ERROR_FIGURES = {
    "f1": "F1",
    "accuracy_on_erroneous": "erroneous",
    "accuracy_on_correct": "correct",
    "f1_cross": "F1, own threshold",
}
"""{figure: heading in tables}. The threshold of the last one comes from the other questions of the same records
(`cross_calibrated`), that of the others from the tuning questions."""


def step_values(
    records: Sequence[Record], groups: list[str], scores: Sequence[Scores], thresholds: StepThresholds
) -> Values:
    """The `STEP_FIGURES` of records with exact labels; `groups` names what is resampled, for each record."""
    return _pseudo_values(records, groups, scores, thresholds)


def _pseudo_values(
    records: Sequence[Record], groups: list[str], scores: Sequence[Scores], thresholds: StepThresholds | None
) -> Values:
    steps = flatten(scores, [record.labels or [] for record in records])
    q, label, trajectory = steps
    used = ~(np.isnan(q) | np.isnan(label))
    correct, group = label >= 0.5, numbered(groups)[trajectory]
    everything = np.zeros_like(trajectory)

    def in_order(within: np.ndarray) -> Any:
        return lambda mask: share_in_order(q[m := mask & used], correct[m], within[m])

    def at_threshold(name: str, each: np.ndarray) -> Any:

        def of(mask: np.ndarray) -> float | None:
            columns = q[mask], label[mask], trajectory[mask]
            if name == "prm_score":
                return prm_score_of(columns, each)["prm_score"]
            return threshold_metrics(columns, len(records), each)[name]

        return of

    figures = {"auroc": in_order(everything), "pair_accuracy": in_order(trajectory)}
    if thresholds is not None:
        figures |= {name: at_threshold(name, thresholds.each(name)) for name in STEP_FIGURES if name not in figures}
    return {name: pseudo_values(group, figure) for name, figure in figures.items()}


def order_values(records: Sequence[Record], groups: list[str], scores: Sequence[Scores]) -> dict[str, np.ndarray]:
    """The figures of `step_values` that need no threshold: how well scores order steps. Raises PQMError where one is
    undefined."""
    values = {name: value for name, value in _pseudo_values(records, groups, scores, None).items() if value is not None}
    if len(values) < 2:
        raise PQMError("AUROC and pairs in order need correct and wrong steps in several groups")
    return values


def errors(records: Sequence[Record], scores: Sequence[Scores], thresholds: StepThresholds) -> dict[str, Any]:
    """Where the scores are wrong: what `by_type` returns for the records with an `error_type`, and `by_position`."""
    labels = [record.labels or [] for record in records]
    found: dict[str, Any] = {"by_position": by_position(scores, labels, thresholds)}
    types = [type_of(record, "error_type") for record in records]
    if known := [i for i, name in enumerate(types) if name is not None]:
        own = [scores[i] for i in known], [labels[i] for i in known], [str(types[i]) for i in known]
        found["by_type"] = by_type(*own, thresholds=thresholds.of(known))
    return found


def first_error_values(records: Sequence[Record], scores: Sequence[Scores], threshold: float) -> Values:
    """The `FIRST_ERROR_FIGURES` of records whose labels end at the first error (`processbench`)."""
    steps = flatten(scores, [record.labels or [] for record in records])
    questions = [record.prompt for record in records]
    firsts = [first_wrong(record.labels or ()) for record in records]
    erroneous = np.array(firsts) >= 0

    def hits(at: float | np.ndarray) -> np.ndarray:
        true, predicted = first_errors(steps, len(records), at)
        return true == predicted

    def accuracy(hit: np.ndarray, mask: np.ndarray) -> float | None:
        return float(hit[mask].mean()) if mask.any() else None

    def f1(hit: np.ndarray, mask: np.ndarray) -> float | None:
        a, c = accuracy(hit, mask & erroneous), accuracy(hit, mask & ~erroneous)
        if a is None or c is None:
            return None
        return 2 * a * c / (a + c) if a + c else 0.0

    hit = hits(threshold)
    figures = {
        "f1": lambda mask: f1(hit, mask),
        "accuracy_on_erroneous": lambda mask: accuracy(hit, mask & erroneous),
        "accuracy_on_correct": lambda mask: accuracy(hit, mask & ~erroneous),
    }
    if crossed := cross_calibrated(scores, firsts, questions):
        crossed_hit = hits(np.array(crossed["thresholds"])[deal(questions)])
        figures["f1_cross"] = lambda mask: f1(crossed_hit, mask)
    group = numbered(questions)
    return {name: pseudo_values(group, figure) for name, figure in figures.items()}
