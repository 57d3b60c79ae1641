"""The one record type: a question, the steps of one solution and, where known, a label for each step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# The step of a solution without text: a failed candidate has to count as wrong, and a record needs a step.
EMPTY_STEP = "(empty completion)"


@dataclass(frozen=True, slots=True)
class Record:
    """One trajectory."""

    id: str
    prompt: str
    """The question."""
    steps: list[str]
    labels: list[float | None] | None = None
    """One per step: a number in [0, 1] (1 correct, 0 wrong), or None for a step without a label. None if the record
    has no labels at all."""
    extra: dict[str, Any] = field(default_factory=dict)
    """The other fields of the source (`question_id`, `policy`, `answer`, `scores`, ...), written back beside the
    scores. Code reads them through `data.candidate` and `scoring.stored`, which check them."""


def first_wrong(labels: Sequence[float | None]) -> int:
    """The index of the first step that is labelled wrong, below 0.5; -1 if there is none."""
    return next((t for t, label in enumerate(labels) if label is not None and label < 0.5), -1)
