"""What the routes share: from questions and steps to Q-values, and the rewards of RL trainers."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pqm_fast.data.encode import Encoded, OverLong
from pqm_fast.data.step_text import split_steps
from pqm_fast.errors import PQMError, RecordError
from pqm_fast.evaluate.aggregate import aggregate_all, log_weight
from pqm_fast.scoring.solutions import records_of
from pqm_fast.scoring.stored import Scores
from pqm_fast.serve.batcher import Batcher, Solution
from pqm_fast.serve.conversation import Conversation
from pqm_fast.serve.options import ServeConfig
from pqm_fast.serve.problem import Problem

STEP_TOKEN_IN_TEXT = "step token in the text"  # the kind of the encoder's error


class Service:
    """The model behind the routes."""

    def __init__(self, config: ServeConfig, batcher: Batcher, conversation: Conversation | str):
        """`conversation`: a text says why there is none."""
        self.config, self.batcher, self._conversation = config, batcher, conversation
        self.encoder = batcher.scorer.encoder
        self.model = Path(config.model).resolve().name if Path(config.model).is_dir() else config.model

    @property
    def conversation(self) -> Conversation:
        if isinstance(self._conversation, str):
            message = f"{self._conversation}; start the server with --conversation"
            raise Problem(400, "unknown_conversation", message)
        return self._conversation

    def check_model(self, name: str | None) -> None:
        """A model folder may have another path where the client is, so only its last part counts."""
        if name is not None and Path(name).name != Path(self.model).name:
            raise Problem(404, "model_not_found", f"model {name!r} is not served here; the model is {self.model!r}")

    def check_count(self, solutions: int) -> None:
        limit = self.config.limits.max_solutions
        if solutions > limit:
            raise Problem(413, "too_many_solutions", f"{solutions:,} solutions; a request may have {limit:,}")

    def check_steps(self, counts: Iterable[int]) -> None:
        """`counts`: the number of steps of each solution."""
        limit = self.config.limits.max_steps
        if (steps := sum(counts)) > limit:
            raise Problem(413, "too_many_steps", f"{steps:,} steps; the solutions of a request may have {limit:,}")

    def steps_of(self, text: str) -> list[str]:
        return split_steps(text, self.config.text_separator)

    async def score(self, solutions: Sequence[tuple[str, Sequence[str]]], lenient: bool) -> list[Scores]:
        """The Q-values of the steps of (question, steps) pairs; None for a step beyond the context. See `Scorer.score`.

        Raises Problem for a solution that cannot be scored.
        """
        self.check_count(len(solutions))
        self.check_steps(len(steps) for _, steps in solutions)
        try:
            records = records_of(solutions)
        except PQMError as error:
            raise Problem(400, "bad_solution", str(error)) from None
        # no more steps fit than the model takes tokens
        beginnings = [replace(record, steps=record.steps[: self.encoder.max_length]) for record in records]
        results = await self.batcher.encode(self.encoder, beginnings)
        if not lenient:
            for result in results:
                _check(result)
        scores: list[Scores] = [[None] * len(record.steps) for record in records]
        usable = [(i, (records[i].prompt, result)) for i, result in enumerate(results) if isinstance(result, Encoded)]
        own = await self.score_encoded([solution for _, solution in usable])
        for (i, _), steps in zip(usable, own, strict=True):
            scores[i] = [*steps, *[None] * (len(records[i].steps) - len(steps))]
        return scores

    async def score_encoded(self, solutions: Sequence[Solution]) -> list[Scores]:
        self.check_count(len(solutions))
        return await self.batcher.score(solutions)

    async def rewards(self, solutions: Sequence[tuple[str, str]]) -> tuple[list[float], list[Scores]]:
        """(the reward of each solution, the Q-values of its steps), from (question, text of the solution) pairs.

        The reward is the aggregated score as a probability. A solution without a score gets 0: one that does not fit
        the context, or holds the step token.
        """
        scores = await self.score([(question, self.steps_of(text)) for question, text in solutions], lenient=True)
        how = self.config.aggregate
        return np.exp(log_weight(aggregate_all(scores, how), how)).tolist(), scores


def _check(result: Encoded | RecordError) -> None:
    """Raises Problem for a solution without tokens, unless its length is the reason."""
    if isinstance(result, (Encoded, OverLong)):
        return
    message = str(result).removeprefix("record ")
    if result.kind == STEP_TOKEN_IN_TEXT:
        # the encoder's advice is for somebody who trains
        message = f"{message.partition(';')[0]}; remove it from the text"
    raise Problem(400, result.kind.replace(" ", "_"), message)


def finite(score: float) -> float | None:
    """JSON has no infinity: the score of a solution that was cut off is null."""
    return score if math.isfinite(score) else None
