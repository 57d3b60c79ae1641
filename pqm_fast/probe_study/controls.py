"""Scores that know nothing of a step but its place or its length, and the class that is most frequent."""

from collections.abc import Callable, Sequence

from pqm_fast.data.records import Record
from pqm_fast.scoring.stored import Scores

CONTROLS: dict[str, Callable[[Record], Scores]] = {
    "position (earlier is better)": lambda record: [-float(t) for t in range(len(record.steps))],
    "length (shorter is better)": lambda record: [-float(len(step)) for step in record.steps],
    "majority (every step is correct)": lambda record: [0.0] * len(record.steps),
}


def control_scores(name: str, records: Sequence[Record]) -> list[Scores]:
    """The scores of the control `name` for the steps of records; lengths are in characters."""
    return [CONTROLS[name](record) for record in records]
