"""Whether solutions are right: as their records say, or judged by their final answers."""

import math
from collections.abc import Sequence

from pqm_fast.data.candidate import Candidate, unusable_correctness
from pqm_fast.data.records import Record
from pqm_fast.errors import RecordError
from pqm_fast.evaluate.answers import answer_of, gold_answer, right_answer


def outcome(record: Record) -> float:
    """The correctness in [0, 1] of a record's solution, as `judged`; NaN if the record has neither `correct` nor
    `answer`. Raises RecordError for a `correct` that is not true, false or a number from 0 to 1."""
    if problem := unusable_correctness(record):
        raise RecordError(problem, kind="correctness that is no number")
    candidate = Candidate.of(record)
    if not candidate.can_be_judged:
        return math.nan
    [correct] = judged([candidate], [answer_of(record) if candidate.correct is None else None])
    return correct


def judged(candidates: Sequence[Candidate], answers: Sequence[str | None]) -> list[float]:
    """The correctness in [0, 1] of solutions to one question.

    It is `correct` where the candidate has it. Elsewhere it is 1 if the final answer of the solution, in `answers`, is
    right for `answer` (`right_answer`), and 0 if it is not or if there is no final answer.
    """
    correct = []
    verdicts: dict[tuple[str, str], bool] = {}  # one comparison for each pair of a final answer and a right answer
    for candidate, answer in zip(candidates, answers, strict=True):
        if candidate.correct is not None:
            correct.append(candidate.correct)
        elif answer is None or candidate.answer is None:
            correct.append(0.0)
        else:
            pair = answer, candidate.answer
            if pair not in verdicts:  # GSM8K and MATH give a whole solution as the right answer
                verdicts[pair] = right_answer(answer, gold_answer(candidate.answer))
            correct.append(float(verdicts[pair]))
    return correct
