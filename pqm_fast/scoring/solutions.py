"""The solutions that a program passes to a scorer, as records."""

from collections.abc import Iterable, Mapping
from typing import Any

from pqm_fast.data.checks import FormatError, check_values, record, show, typed
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError


def records_of(solutions: Any) -> list[Record]:
    """The record of each (question, steps) pair. Raises PQMError for anything else; the message names the solution."""
    if isinstance(solutions, (str, bytes, Mapping)) or not isinstance(solutions, Iterable):
        raise PQMError(f"solutions are {show(solutions)}; pass a list of (question, steps) pairs")
    return [_record(number, solution) for number, solution in enumerate(solutions)]


def _record(number: int, solution: Any) -> Record:
    name = f"solution {number}"
    if not isinstance(solution, (tuple, list)) or len(solution) != 2:
        raise PQMError(f"{name}: {show(solution)} is not a pair; pass (question, steps), the steps as a list of texts")
    question, steps = solution
    if isinstance(steps, (str, bytes, Mapping, set, frozenset)) or not isinstance(steps, Iterable):
        raise PQMError(
            f"{name}: steps are {show(steps)} ({type(steps).__name__}); pass a non-empty list of texts, one per step"
        )
    steps = list(steps)
    try:
        check_values({"the question": question} | {f"step {i}": step for i, step in enumerate(steps, 1)})
        return record(name, typed(question, "the question", str), steps, None, {})
    except FormatError as error:
        raise PQMError(f"{name}: {error}") from None
