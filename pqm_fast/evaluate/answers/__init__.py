"""Final answers: find them in a solution (`find`), compare them, group them for a vote (`same`).

text -> notation -> form (parse, value, units, relations) -> key
"""

from pqm_fast.evaluate.answers.find import answer_of, final_answer, gold_answer, marked_answer
from pqm_fast.evaluate.answers.same import group_answers, right_answer, same_answer

__all__ = [
    "answer_of",
    "final_answer",
    "gold_answer",
    "group_answers",
    "marked_answer",
    "right_answer",
    "same_answer",
]
