"""A process reward model for the searches of its-hub: beam search, particle filtering, particle Gibbs."""

import asyncio
from collections.abc import Sequence
from typing import Any

from pqm_fast.evaluate.aggregate import TEMPERATURE, aggregate
from pqm_fast.rewards.solutions import SEPARATOR, Model, SolutionScorer, last_question
from pqm_fast.rewards.step_rewards import sigmoid


class ItsHubPRM:
    """its-hub's `AbstractProcessRewardModel`, without importing its-hub: `BeamSearch(sg, ItsHubPRM("runs/pqm"), 4)`.

    Args:
        model: a checkpoint (folder or hub id), the URL of a running `pqm-fast serve`, or a scorer.
        how: one number for a partial solution, see `pqm_fast.evaluate.aggregate`: `last` is the value of its state, and
            `min` its worst step.
        separator: between steps, the `step_token` of its-hub's `StepGeneration`.
        temperature: of `softmin`.
    """

    def __init__(self, model: Model, how: str = "min", *, separator: str = SEPARATOR, temperature: float = TEMPERATURE):
        aggregate([0.0], how, temperature)  # raises now, not in the middle of a search
        self.scorer, self.how, self.temperature = SolutionScorer(model, separator), how, temperature

    def score(self, prompt_or_messages: Any, steps: Sequence[str]) -> list[float]:
        """The sigmoid of the aggregated scores of each solution, from 0 to 1. A solution that does not fit the
        model's context gets 0.

        Args:
            prompt_or_messages: the question, or messages of which the last of the user is the question.
            steps: partial solutions, one text each: that is what its-hub's searches pass under this name.

        Raises:
            PQMError: as `Scorer.score`.
        """
        messages = prompt_or_messages
        if hasattr(messages, "to_chat_messages"):
            messages = messages.to_chat_messages()
        question = last_question(messages)
        all_scores = self.scorer.score([(question, text) for text in steps])
        return [sigmoid(aggregate(scores, self.how, self.temperature)) for scores in all_scores]

    async def ascore(self, prompt_or_messages: Any, steps: Sequence[str]) -> list[float]:
        """`score` in a thread."""
        return await asyncio.to_thread(self.score, prompt_or_messages, steps)
