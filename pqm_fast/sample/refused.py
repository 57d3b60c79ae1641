"""Questions that are left out because a policy or a model cannot take them."""

from collections.abc import Sequence

from pqm_fast.errors import PQMError
from pqm_fast.ranks.group import Ranks
from pqm_fast.sample.read_questions import Question


def leave_out(refused: dict[int, str], q: int, question: Question, why: object, skip: bool) -> None:
    """Adds question number `q` to `refused`, with the reason. Raises PQMError unless such questions may be left out."""
    reason = f"question {question.id}: {why}"
    if not skip:
        raise PQMError(f"{reason}; --skip-refused leaves such questions out")
    refused.setdefault(q, reason)


def of_all_ranks(own: dict[int, str], ranks: Ranks, questions: int, sources: Sequence[str]) -> dict[int, str]:
    """The questions that were refused on any rank, in their order. Raises PQMError if these are all `questions`."""
    refused = dict(sorted(pair for of_rank in ranks.gather(own) for pair in of_rank.items()))
    if len(refused) == questions:
        raise PQMError(f"{', '.join(sources)}: no question could be taken, the last: {refused.popitem()[1]}")
    return refused


def print_left_out(refused: dict[int, str]) -> None:
    """Says how many questions were left out, if any, and the reason of one."""
    if refused:
        what = "1 question that was refused" if len(refused) == 1 else f"{len(refused):,} questions that were refused"
        print(f"left out {what}, for example: {next(iter(refused.values()))}")
