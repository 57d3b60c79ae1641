"""Step scores, and the fields in which `pqm-fast score` stores them beside a record."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pqm_fast.data.checks import show
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError

Scores = Sequence[float | None]
"""The Q-value of each step of one solution; None for a step without a score."""
SCORED_BY = "scored_by"  # the field of a scored record that names the model


def model_name(model: str) -> str:
    """The name of a model in files that hold its scores: the absolute path of a folder, otherwise the hub id."""
    return str(Path(model).resolve()) if Path(model).exists() else model


def scores_of(record: Record, source: str, otherwise: str = "") -> Scores:
    """The stored scores of a record, one per step: a finite number, or None for a step without a score.

    For error messages, `source` names the files of the record, and `otherwise` is an alternative to scoring them.

    Raises:
        PQMError: the record has no such scores.
    """
    scores = record.extra.get("scores")
    record_name = f"{source}: record {record.id}"
    if scores is None:
        raise PQMError(f"{record_name}: no `scores`; run `pqm-fast score` first{otherwise}")
    if not isinstance(scores, list) or len(scores) != len(record.steps):
        raise PQMError(f"{record_name}: scores {show(scores)} for {len(record.steps)} steps; give one per step")
    for score in scores:
        if not (score is None or _is_finite(score)):
            raise PQMError(
                f"{record_name}: score {show(score)} in scores {show(scores)}; each must be a finite number, or null "
                "for none"
            )
    return scores


def _is_finite(value: Any) -> bool:
    # math.isfinite raises OverflowError for an integer that no float can hold
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
