"""Scores and rewards of the solutions that a policy wrote: whole texts instead of steps."""

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias

from pqm_fast.data.step_text import split_steps
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.aggregate import aggregate
from pqm_fast.rewards.step_rewards import REWARDS, step_rewards
from pqm_fast.scoring.open_scorer import open_scorer
from pqm_fast.scoring.remote import RemoteScorer
from pqm_fast.scoring.stored import Scores

if TYPE_CHECKING:
    from pqm_fast.scoring.scorer import Scorer

SEPARATOR = "\n\n"
Model: TypeAlias = "str | os.PathLike[str] | Scorer | RemoteScorer"
"""A checkpoint (folder or hub id), the URL of a running `pqm-fast serve`, or a scorer."""


class SolutionScorer:
    """Q-values of the steps of solutions that are given as texts. Threads may share it.

    Args:
        model: a checkpoint (folder or hub id), the URL of a running `pqm-fast serve`, or a scorer.
        separator: between the steps of a solution.

    Raises:
        PQMError: the model cannot be loaded, or the separator is empty.
    """

    def __init__(self, model: Model, separator: str = SEPARATOR):
        if not separator:
            raise PQMError("separator: it is empty; give the text between two steps")
        self.scorer = open_scorer(os.fspath(model)) if isinstance(model, (str, os.PathLike)) else model
        self.separator = separator
        self.turn: AbstractContextManager[Any] = nullcontext() if isinstance(self.scorer, RemoteScorer) else Lock()

    def score(self, solutions: Sequence[tuple[str, str]]) -> list[Scores]:
        """The scores of the steps of (question, text) pairs; see `score_steps`. A blank solution has one step."""
        return self.score_steps([(question, split_steps(text, self.separator)) for question, text in solutions])

    def score_steps(self, solutions: Sequence[tuple[str, Sequence[str]]]) -> list[Scores]:
        """`Scorer.score`. A solution that holds the step token has no scores: a policy must not end its training."""
        with self.turn:
            return self.scorer.score(solutions, lenient=True)


class SolutionReward:
    """One number for a whole solution: the sum of its step rewards, or an aggregate of its scores.

    Args:
        how: a name in `REWARDS`.
        aggregate: instead, how `pqm_fast.evaluate.aggregate` makes one number of the scores.
        numbers: of `step_rewards`.

    Raises:
        PQMError: an unknown name, or a number that does not fit; when it is made, not in the middle of a training run.
    """

    def __init__(self, how: str, aggregate: str | None = None, **numbers: Any):
        self.how, self.aggregate, self.numbers = how, aggregate, numbers
        known = ["temperature"] if aggregate == "softmin" else []
        if aggregate is not None and (unknown := [name for name in numbers if name not in known]):
            raise PQMError(
                f"aggregate {aggregate!r} takes {', '.join(known) or 'no numbers'}; found {', '.join(unknown)}"
            )
        if how not in REWARDS:
            raise PQMError(f"unknown step reward {how!r}; choose one of {', '.join(REWARDS)}")
        if "correct" in numbers:
            raise PQMError("correct: it is of one solution, and this reward is for many; call step_rewards yourself")
        self([0.0])

    def __call__(self, scores: Scores) -> float:
        """-inf if a score is missing that the aggregate needs."""
        if self.aggregate is None:
            return math.fsum(step_rewards(scores, self.how, **self.numbers))
        return aggregate(scores, self.aggregate, **self.numbers)


def last_question(messages: Any) -> str:
    """The question of a prompt: a text, or the text of the last message of the user.

    Messages are mappings or objects with a role and a content: a text, or parts of which those with a text count.

    Raises:
        PQMError: no message of a user.
    """
    if isinstance(messages, str):
        return messages
    for message in reversed(list(messages)):
        fields = message if isinstance(message, Mapping) else vars(message)
        if fields["role"] == "user":
            return message_text(fields["content"])
    raise PQMError("a prompt has no message with the role `user`, so the question is not known")


def message_text(content: Any) -> str:
    """The text of a message's content: a text, or parts of which those with a text count."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or [])
