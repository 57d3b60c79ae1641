"""Deals the records of a command to its ranks by name, so that no rank has to ask another."""

from pqm_fast.data.questions import question_number
from pqm_fast.ranks.group import Ranks


def dealt_to(ranks: Ranks, name: str) -> bool:
    """Whether this rank does what has that name: the id of a record, or a question for all that belongs to it.

    It is one rank of them all, the same in every run on as many ranks. Differences in white space do not count.
    """
    return question_number(name) % ranks.world == ranks.rank
