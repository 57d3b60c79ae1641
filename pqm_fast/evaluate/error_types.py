"""Step figures by type of error, as PRMBench reports them."""

from collections.abc import Sequence
from typing import Any

from pqm_fast.data.records import Record
from pqm_fast.evaluate.prm_score import prm_score
from pqm_fast.evaluate.step_metrics import Trajectories, step_metrics
from pqm_fast.evaluate.step_thresholds import StepThresholds, calibrated, calibrated_metrics

NO_ERROR = "none"  # the type of a record whose field is null, like the unaltered solutions of PRMBench


def type_of(record: Record, field: str) -> str | None:
    """The value of a record's field as a text: `NO_ERROR` for null, None if the record does not have the field."""
    if field not in record.extra:
        return None
    return NO_ERROR if (value := record.extra[field]) is None else str(value)


def by_type(
    scores: Trajectories,
    labels: Trajectories,
    types: Sequence[str],
    threshold: float = 0.0,
    thresholds: StepThresholds | None = None,
) -> dict[str, dict[str, Any]]:
    """For each type, sorted: the results of `step_metrics`, `prm_score` and `calibrated_metrics`, and
    `prm_score_calibrated`.

    `thresholds` belong to the model, not to a type: they were chosen over all types, on other questions. The other
    arguments and the errors are those of `step_metrics`.
    """
    figures: dict[str, dict[str, Any]] = {}
    for name in sorted(set(types)):
        members = [i for i, kind in enumerate(types) if kind == name]
        q, y = [scores[i] for i in members], [labels[i] for i in members]
        type_thresholds = None if thresholds is None else thresholds.of(members)
        figures[name] = (
            step_metrics(q, y, threshold) | prm_score(q, y, threshold) | calibrated_metrics(q, y, type_thresholds)
        )
        score = None if type_thresholds is None else prm_score(q, y, type_thresholds.each("prm_score"))["prm_score"]
        figures[name][calibrated("prm_score")] = score
    return figures
