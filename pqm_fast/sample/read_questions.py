"""Reads the questions to sample solutions for, from the same sources as records."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pqm_fast.data.checks import FormatError, check_values, explicit_id, field, rest
from pqm_fast.data.read import BadRecord
from pqm_fast.data.sources import Place, expand, open_source
from pqm_fast.errors import PQMError

QUESTION_FIELDS = ("question", "problem", "prompt")
# earlier solutions of the question, their labels, and all that a pool says of a solution or of how it was made
_DROPPED_FIELDS = (
    *("question_id", "responses", "completions", "labels", "steps", "label", "answer"),
    *("correct", "finish_reason", "method", "model_name", "policy", "sample", "scores", "tokens"),
    *("scored_by", "tokens_written"),
)


@dataclass(frozen=True, slots=True)
class Question:
    """`answer` is None if it is not known. `extra` has the record's other fields, which are copied into the pool."""

    id: str
    text: str
    answer: Any
    extra: dict[str, Any]

    def row(self, **fields: Any) -> dict[str, Any]:
        """A row of a pool: the question, its answer if it is known, `fields`, and the fields that are copied."""
        known = {} if self.answer is None else {"answer": self.answer}
        row = {"id": self.id, "question": self.text, **known, **fields}
        return row | {name: value for name, value in self.extra.items() if name not in row}


def read_questions(sources: Sequence[str]) -> Iterator[Question]:
    """Reads records with a `question`, `problem` or `prompt`, and an `answer` (or `solution`) if there is one.

    Raises a PQMError that names the record if it has no question, or if its id occurs twice.
    """
    places_by_id: dict[str, Place] = {}
    for source in expand(sources):
        stem, raws = open_source(source)
        for place, raw in raws:
            try:
                question = _question(raw, f"{stem}:{place.number}")
                if question.id in places_by_id:
                    raise FormatError("duplicate id", f"the id {question.id} is taken by {places_by_id[question.id]}")
            except FormatError as error:
                raise BadRecord(place, error) from None
            places_by_id[question.id] = place
            yield question
    if not places_by_id:
        raise PQMError(f"{', '.join(sources) or 'data'}: no questions; give at least one")


def _question(raw: Any, default_id: str) -> Question:
    if isinstance(raw, FormatError):
        raise raw
    if not isinstance(raw, dict):
        raise FormatError("not an object", "is not a JSON object; give one object per record")
    id = explicit_id(raw) or explicit_id(raw, "question_id") or default_id
    check_values(raw)
    name = next((name for name in QUESTION_FIELDS if raw.get(name) is not None), QUESTION_FIELDS[0])
    text = field(raw, name, str)
    if not text.strip():
        raise FormatError("empty question", f"{name} is empty; give its text or remove the record")
    answer = raw.get("solution") if raw.get("answer") is None else raw["answer"]
    return Question(id, text, answer, rest(raw, name, *_DROPPED_FIELDS))
