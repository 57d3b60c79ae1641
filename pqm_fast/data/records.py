"""The one record type: a question, the steps of one solution and, where known, a label for each step."""

from dataclasses import dataclass, field
from typing import Any

EMPTY_STEP = "(empty completion)"  # a failed candidate is one too: it has to count as wrong, and a record needs a step


@dataclass(frozen=True, slots=True)
class Record:
    """One trajectory.

    `labels` holds one entry per step: a float in [0, 1] (1 correct, 0 wrong) or None for a step without a
    label; it is None where the record has no labels at all. `extra` keeps what else the source says
    (`question_id`, `policy`, `answer`, `scores`, ...) and is written back beside the scores.
    """

    id: str
    prompt: str
    steps: list[str]
    labels: list[float | None] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
