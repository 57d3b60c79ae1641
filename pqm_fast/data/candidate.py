"""A record as one solution of its question: what `Record.extra` says about the solution, typed and checked."""

from dataclasses import dataclass
from typing import Any

from pqm_fast.data.checks import show
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError, RecordError


@dataclass(frozen=True, slots=True)
class Candidate:
    """One solution of a question. A field is None where the record does not say."""

    record: Record
    question_id: str | None
    """The pool of candidates that the solution belongs to."""
    policy: str | None
    """The model that wrote the solution."""
    correct: float | None
    """Correctness of the whole solution, in [0, 1]; true is 1 and false is 0."""
    answer: str | None
    """The right answer to the question, as the data set writes it (not the answer of this solution)."""
    cut_off: bool
    """Whether the solution stopped at a length limit (`finish_reason` is `length`)."""

    @classmethod
    def of(cls, record: Record, source: str = "") -> "Candidate":
        """Reads and checks the fields of a record. `source` names its files in the message.

        Raises:
            PQMError: the record has the field `question_id`, and a `correct` that is not true, false or a number from
                0 to 1. In a record without the field, such a `correct` is something else, and is ignored.
        """
        if has_question_id(record) and (problem := unusable_correctness(record)):
            raise PQMError(f"{source}: {problem}" if source else problem)
        extra = record.extra
        return cls(
            record=record,
            question_id=_text(extra.get("question_id")),
            policy=_text(extra.get("policy")),
            correct=correctness(record),
            answer=_text(extra.get("answer")),
            cut_off=is_cut_off(record),
        )

    @property
    def can_be_judged(self) -> bool:
        """Whether the record says if the solution is right, or which answer is."""
        return self.correct is not None or self.answer is not None


def has_question_id(record: Record) -> bool:
    """Whether the record has the field `question_id`, even if it is null: its file then holds pools."""
    return "question_id" in record.extra


def correctness(record: Record) -> float | None:
    """`correct` as a number in [0, 1]; None if it is missing, or is not true, false or such a number."""
    correct = record.extra.get("correct")
    # true and false are numbers in Python; NaN is outside every range
    return float(correct) if isinstance(correct, (int, float)) and 0 <= correct <= 1 else None


def unusable_correctness(record: Record) -> str | None:
    """What is wrong with a `correct` that is not true, false or a number from 0 to 1."""
    stated = record.extra.get("correct")
    if stated is None or correctness(record) is not None:
        return None
    return f"record {record.id}: correct is {show(stated)}; give true, false or a number from 0 to 1"


def stated_fields(record: Record) -> dict[str, str | int | float]:
    """`policy`, `correct` and `answer` as the file states them, for display: only texts and numbers, and no `correct`
    that cannot be one."""
    names = ["policy", "answer"] if correctness(record) is None else ["policy", "correct", "answer"]
    return {name: value for name in names if isinstance(value := record.extra.get(name), (str, int, float))}


def is_cut_off(record: Record) -> bool:
    """Whether the solution was cut off at a length limit. A number in it may then be an intermediate result."""
    return record.extra.get("finish_reason") == "length"


def known_answer(record: Record) -> str:
    """The right answer to the record's question.

    Raises:
        RecordError: the record does not have one.
    """
    answer = _text(record.extra.get("answer"))
    if answer is None:
        raise RecordError(f"record {record.id}: no `answer`; add the right answer of its question", "no answer")
    return answer


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
