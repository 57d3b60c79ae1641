"""The questions to sample solutions for, from any source that records come from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pqm_fast.data.checks import FormatError, check_values, explicit_id, field, rest
from pqm_fast.data.read import BadRecord
from pqm_fast.data.sources import Place, expand, open_source
from pqm_fast.errors import PQMError

QUESTION = ("question", "problem", "prompt")
# solutions and their labels belong to who wrote them
_DROPPED = ("question_id", "responses", "completions", "labels", "steps", "label", "answer")


@dataclass(frozen=True, slots=True)
class Question:
    """`extra`: every other field of its record, written back into the pool; `answer` is None where there is none."""

    id: str
    text: str
    answer: Any
    extra: dict[str, Any]


def read_questions(sources: Sequence[str]) -> Iterator[Question]:
    """Records with the question as `question`, `problem` or `prompt`, and `answer` (or `solution`) if there is one.

    Raises PQMError that names the record for one without a question and for an id that occurs twice.
    """
    taken: dict[str, Place] = {}
    for source in expand(sources):
        stem, raws = open_source(source)
        for place, raw in raws:
            try:
                question = _question(raw, f"{stem}:{place.number}")
                if question.id in taken:
                    raise FormatError("duplicate id", f"the id {question.id} is taken by {taken[question.id]}")
            except FormatError as error:
                raise BadRecord(place, error) from None
            taken[question.id] = place
            yield question
    if not taken:
        raise PQMError(f"{', '.join(sources) or 'data'}: no questions; give at least one")


def _question(raw: Any, numbered: str) -> Question:
    if isinstance(raw, FormatError):
        raise raw
    if not isinstance(raw, dict):
        raise FormatError("not an object", "is no JSON object; give one object per record")
    id = explicit_id(raw) or explicit_id(raw, "question_id") or numbered
    check_values(raw)
    name = next((name for name in QUESTION if raw.get(name) is not None), QUESTION[0])
    text = field(raw, name, str)
    if not text.strip():
        raise FormatError("empty question", f"{name} is empty; give its text or remove the record")
    answer = raw.get("solution") if raw.get("answer") is None else raw["answer"]
    return Question(id, text, answer, rest(raw, name, *_DROPPED))
