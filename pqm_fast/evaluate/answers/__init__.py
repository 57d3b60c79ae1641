"""Final answers: finds them in a solution (`find`), compares them, and groups them for a vote (`same`).

An answer becomes a key in three steps: `notation` gives the text one spelling, `form` recognises its kind (with
`parse`, `value`, `units`, `relations` and `numeric`), and `keys` makes the key. `judge` asks math-verify
about the rest.
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
