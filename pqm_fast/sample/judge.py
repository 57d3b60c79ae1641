"""Whether a solution ends with the right answer."""

from pqm_fast.evaluate.answers import final_answer, gold_answer, marked_answer, right_answer


def right(begun: str, completion: str, finished: bool, gold: str) -> bool:
    """Whether `begun` (steps of a solution, or nothing) and its completion end with the answer `gold`.

    A marked answer may stand anywhere (`marked_answer`; the last counts). Without one it is the last number of the
    completion, if that was not cut off: there, and in the steps before it, a number may be any.
    """
    answer = marked_answer(f"{begun}\n{completion}") or (final_answer(completion) if finished else None)
    return answer is not None and right_answer(answer, gold_answer(gold))
