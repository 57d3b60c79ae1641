"""Computes all figures that need step labels: step metrics, curves, error types and ProcessBench."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pqm_fast.data.records import Record, first_wrong
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.calibrate import FOLDS, ON_FOLDS, ON_OTHERS, deal
from pqm_fast.evaluate.error_types import by_type, type_of
from pqm_fast.evaluate.positions import by_position
from pqm_fast.evaluate.probabilities import cross_scaled, scaled_from
from pqm_fast.evaluate.processbench import calibrate_threshold, cross_calibrated, processbench
from pqm_fast.evaluate.step_curves import auroc_by_position, calibration
from pqm_fast.evaluate.step_metrics import flatten, step_metrics
from pqm_fast.evaluate.step_thresholds import StepThresholds, calibrated_metrics, cross_thresholds, thresholds_from
from pqm_fast.scoring.stored import Scores

Pair = tuple[Record, Scores]
Scored = Iterable[Pair]
TOO_FEW = f"{FOLDS - 1} of {FOLDS} parts of the questions must hold"


def evaluate_steps(
    scored: Scored, threshold: float = 0.0, by: str = "error_type", calibrate: Scored | None = None
) -> dict[str, Any]:
    """Figures over the labelled records among (record, step scores) pairs.

    Args:
        threshold: a step counts as predicted wrong below this Q-value.
        by: the field of `extra` that names a record's type of error.
        calibrate: other pairs, for the thresholds of the calibrated figures and for Platt scaling. Without them, those
            of each question come from the other questions (`cross_thresholds`, `cross_calibrated`, `cross_scaled`).

    Returns:
        `threshold`; `steps`: the results of `step_metrics` and `calibrated_metrics`; `step_thresholds`: {figure: its
        thresholds} and `calibrated_on`, if there are any, and with them `probabilities`, the result of `cross_scaled`
        or `scaled_from`; `calibration`, `auroc_by_position`: the results of
        `step_curves`, with the length of a step in characters; `by_position`: the result of `positions.by_position`;
        `by_type`: {field, types} with the result of `error_types.by_type`, if records have the field. If the labels of
        every record name a first error (all steps correct, or correct up to a wrong step and none labelled correct
        after it): `processbench`, its result at `threshold`, and `processbench_calibrated`, with `thresholds` and
        `calibrated_on`. `left_out`: one sentence for each thing that is missing, and why. JSON-ready.

    Raises:
        PQMError: a record whose scores do not fit its steps, a NaN score, or `calibrate` that shares questions with
            `scored`, holds a record without labels, or holds no correct or no wrong step. If the labels of `scored`
            name first errors, those of `calibrate` must too, and it must hold erroneous and correct solutions.
    """
    pairs = [checked(record, scores) for record, scores in scored]
    labelled = [(record, record.labels, scores) for record, scores in pairs if record.labels is not None]
    result: dict[str, Any] = {"left_out": []}
    if len(labelled) < len(pairs):
        result["left_out"].append(f"{len(pairs) - len(labelled)} of {len(pairs)} records have no labels")
    if not labelled:
        return result
    records, labels, scores = [r for r, *_ in labelled], [y for _, y, _ in labelled], [q for *_, q in labelled]
    other_pairs = None if calibrate is None else _others(calibrate, {record.prompt for record in records})
    result["threshold"] = threshold
    first_errors = _first_error_figures(records, labels, scores, threshold, other_pairs, result)
    step_thresholds = _thresholds(records, labels, scores, other_pairs)
    result["steps"] = step_metrics(scores, labels, threshold) | calibrated_metrics(scores, labels, step_thresholds)
    if step_thresholds is None:
        result["left_out"].append(f"calibrated step figures and probabilities: {TOO_FEW} correct and wrong steps")
    else:
        result["step_thresholds"] = {**step_thresholds.chosen, "calibrated_on": step_thresholds.calibrated_on}
    probabilities = _probabilities(records, labels, scores, other_pairs)
    if probabilities is not None:
        result["probabilities"] = probabilities
    result["calibration"] = calibration(scores, labels)
    lengths = [[len(step) for step in record.steps] for record in records]
    result["auroc_by_position"] = auroc_by_position(scores, labels, lengths)
    result["by_position"] = by_position(scores, labels, step_thresholds)
    type_of_each = [type_of(record, by) for record in records]
    typed_indices = [i for i, kind in enumerate(type_of_each) if kind is not None]
    if typed_indices:
        types = [kind for kind in type_of_each if kind is not None]
        typed_thresholds = None if step_thresholds is None else step_thresholds.of(typed_indices)
        figures = by_type(
            [scores[i] for i in typed_indices], [labels[i] for i in typed_indices], types, threshold, typed_thresholds
        )
        result["by_type"] = {"field": by, "types": figures}
        if len(typed_indices) < len(labelled):
            result["left_out"].append(
                f"by {by}: {len(labelled) - len(typed_indices)} of {len(labelled)} records lack it"
            )
    result |= first_errors
    num_cut = sum(
        q is None and y is not None for ys, qs in zip(labels, scores, strict=True) for y, q in zip(ys, qs, strict=True)
    )
    if num_cut:
        result["left_out"].append(f"{num_cut} labelled steps have no score (they were cut off)")
    return result


def _first_error_figures(
    records: list[Record],
    labels: list[list[float | None]],
    scores: list[Sequence[float | None]],
    threshold: float,
    other_pairs: list[Pair] | None,
    result: dict[str, Any],
) -> dict[str, Any]:
    first_errors = [first_error(y) for y in labels]
    error_indices = [first for first in first_errors if first is not None]
    if len(error_indices) < len(labels):
        unfit = len(labels) - len(error_indices)
        result["left_out"].append(
            f"ProcessBench: the labels of {unfit} of {len(labels)} records do not name a first error"
        )
        return {}
    figures: dict[str, Any] = {
        "processbench": {"threshold": threshold, **processbench(scores, error_indices, threshold)}
    }
    if other_pairs is not None:
        best_threshold = _first_error_threshold(other_pairs)
        at_best = {
            **processbench(scores, error_indices, best_threshold),
            "thresholds": [best_threshold],
            "calibrated_on": ON_OTHERS,
        }
        return {**figures, "processbench_calibrated": at_best}
    cross_figures = cross_calibrated(scores, error_indices, [record.prompt for record in records])
    if cross_figures is None:
        result["left_out"].append(
            f"ProcessBench with a calibrated threshold: {TOO_FEW} erroneous and correct solutions"
        )
        return figures
    return {**figures, "processbench_calibrated": {**cross_figures, "calibrated_on": ON_FOLDS}}


def _others(calibrate: Scored, scored_prompts: set[str]) -> list[Pair]:
    pairs = [checked(record, scores) for record, scores in calibrate]
    shared = next((record for record, _ in pairs if record.prompt in scored_prompts), None)
    if shared is not None:
        raise PQMError(
            f"calibrate: record {shared.id} asks a question that is also scored: a threshold must come from others"
        )
    return pairs


def _first_error_threshold(other_pairs: list[Pair]) -> float:
    first_errors = [first_error(record.labels) if record.labels else None for record, _ in other_pairs]
    unfit = next((record for (record, _), first in zip(other_pairs, first_errors, strict=True) if first is None), None)
    if unfit is not None:
        raise PQMError(f"calibrate: record {unfit.id}: its labels do not name a first error; leave it out")
    try:
        return calibrate_threshold([q for _, q in other_pairs], [first for first in first_errors if first is not None])
    except PQMError as error:
        raise PQMError(f"calibrate: {error}") from None


def _thresholds(
    records: list[Record],
    labels: list[list[float | None]],
    scores: list[Sequence[float | None]],
    other_pairs: list[Pair] | None,
) -> StepThresholds | None:
    if other_pairs is None:
        return cross_thresholds(scores, labels, [record.prompt for record in records])
    unlabelled = next((record for record, _ in other_pairs if record.labels is None), None)
    if unlabelled is not None:
        raise PQMError(f"calibrate: record {unlabelled.id}: it has no labels; leave it out")
    try:
        return thresholds_from(
            [q for _, q in other_pairs], [record.labels or [] for record, _ in other_pairs], len(records)
        )
    except PQMError as error:
        raise PQMError(f"calibrate: {error}") from None


def _probabilities(
    records: list[Record],
    labels: list[list[float | None]],
    scores: list[Sequence[float | None]],
    other_pairs: list[Pair] | None,
) -> dict[str, Any] | None:
    """After `_thresholds`, which refuses other pairs without labels."""
    q, label, trajectory = flatten(scores, labels)
    used = ~(np.isnan(q) | np.isnan(label))
    if other_pairs is None:
        folds = deal([record.prompt for record in records])
        return cross_scaled(q[used], label[used], folds[trajectory[used]])
    other_q, other_label, _ = flatten([q for _, q in other_pairs], [record.labels or [] for record, _ in other_pairs])
    other_used = ~(np.isnan(other_q) | np.isnan(other_label))
    return scaled_from(q[used], label[used], other_q[other_used], other_label[other_used])


def checked(record: Record, scores: Sequence[float | None]) -> Pair:
    """Returns the pair. Raises PQMError unless there is one score per step."""
    if len(scores) != len(record.steps):
        raise PQMError(f"record {record.id}: {len(scores)} scores for {len(record.steps)} steps: pass one per step")
    return record, scores


def first_error(labels: Sequence[float | None]) -> int | None:
    """Index of the first wrong step, -1 if every step is correct, None if the labels leave it open."""
    wrong = first_wrong(labels)
    end = len(labels) if wrong < 0 else wrong
    if None in labels[:end] or any(label is not None and label >= 0.5 for label in labels[end:]):
        return None
    return wrong
