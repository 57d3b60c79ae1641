"""Formats that state the first wrong step of a solution: ProcessBench, ReasonEval's meta-evaluation and MR-GSM8K."""

import math
from typing import Any

from pqm_fast.data.checks import FormatError, explicit_id, field, record, rest, show, typed
from pqm_fast.data.formats.options import ReadOptions
from pqm_fast.data.records import Record


def _labels(count: int, first: int | None, options: ReadOptions) -> list[float | None]:
    """Labels of `count` steps. `first` is the index, from 0, of the first wrong step; None if all are correct."""
    if first is None:
        return [1.0] * count
    return [1.0] * first + [0.0] + [options.wrong_after_error] * (count - first - 1)


def parse_processbench(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`problem`, `steps`, `label`: the index of the first wrong step from 0, or -1 for none."""
    steps, labels = field(raw, "steps", list), None
    if _known(raw.get("label")) is not None:
        first, count = field(raw, "label", int), len(steps)
        if not -1 <= first < count:
            raise FormatError("bad label", f"label is {first}; it must be -1 or the index of one of the {count} steps")
        labels = _labels(count, None if first == -1 else first, options)
    return [record(id, field(raw, "problem", str), steps, labels, rest(raw, "problem", "steps", "label"))]


def _known(value: Any) -> Any:
    """`value`, or None for NaN, which stands for a missing value in tables."""
    return None if isinstance(value, float) and math.isnan(value) else value


_STEPS = ("model_output_step_format", "model_output_steps")
_CORRECT = "model_output_solution_correctness"
_FIRST = "model_output_solution_first_error_step"


def parse_reasoneval(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`question`, steps as `model_output_steps` or (lines of each) `model_output_step_format`, and either the number of
    the first wrong step from 1 ("N/A" for none) and whether the solution is correct, or a list of ratings 1, 0, -1."""
    name = next((name for name in _STEPS if raw.get(name) is not None), _STEPS[0])
    steps = [_joined_lines(step, f"step {k}") for k, step in enumerate(field(raw, name, list), 1)]
    if raw.get("rating") is not None:
        labels: Any = [options.rating(r, f"rating {k}") for k, r in enumerate(field(raw, "rating", list), 1)]
    else:
        labels = _first_error_labels(raw, len(steps), options)
    extra = rest(raw, *_STEPS, "question", "rating", _FIRST, "ground_truth_answer", "uuid")
    extra["answer"] = raw.get("ground_truth_answer")
    return [record(explicit_id(raw, "uuid") or id, field(raw, "question", str), steps, labels, extra)]


def _joined_lines(step: Any, name: str) -> Any:
    if not isinstance(step, list):
        return step  # `record` checks it
    return "\n".join(typed(line, f"{name}, line {k}", str) for k, line in enumerate(step, 1))


def _first_error_labels(raw: dict[str, Any], count: int, options: ReadOptions) -> list[float | None] | None:
    first, judged = _known(raw.get(_FIRST)), _known(raw.get(_CORRECT))
    if judged not in (None, "correct", "wrong", "incorrect"):
        raise FormatError("bad label", f'{_CORRECT} is {show(judged)}; it must be "correct" or "wrong"')
    if isinstance(first, str):
        first = None if first.strip().upper() in ("N/A", "NA", "") else first.strip()
        if first is not None and first.isascii() and first.isdigit() and len(first) < 10:
            first = int(first)
    if isinstance(first, float) and first.is_integer():
        first = int(first)
    if first is None:
        # N/A means that there is no error; in a solution judged wrong, that the error could not be located
        return _labels(count, None, options) if judged == "correct" or (judged is None and _FIRST in raw) else None
    if judged == "correct":
        raise FormatError("bad label", f"{_FIRST} is {show(first)} in a solution judged correct; correct one of them")
    if isinstance(first, bool) or not isinstance(first, int) or not 1 <= first <= count:
        raise FormatError("bad label", f'{_FIRST} is {show(first)}; it must be "N/A" or one of the steps 1 to {count}')
    return _labels(count, first - 1, options)
