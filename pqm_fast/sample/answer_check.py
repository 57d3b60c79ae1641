"""Checks whether a solution that a policy wrote ends with the right answer."""

from pqm_fast.evaluate.answers import final_answer, gold_answer, marked_answer, right_answer


def ends_right(steps_so_far: str, completion: str, finished: bool, gold: str) -> bool:
    """Whether a solution of `steps_so_far` (may be empty) and a completion ends with the answer `gold`.

    The last marked answer counts, wherever it is in the solution (`marked_answer`). Without one, the answer is the last
    number of the completion, provided that the completion was not cut off: a number before the cut, or in
    `steps_so_far`, may be an intermediate result.
    """
    answer = marked_answer(f"{steps_so_far}\n{completion}") or (final_answer(completion) if finished else None)
    return answer is not None and right_answer(answer, gold_answer(gold))
