"""A reward function for TRL's GRPOTrainer and RLOOTrainer."""

from collections.abc import Callable, Sequence
from typing import Any

from pqm_fast.errors import PQMError
from pqm_fast.rewards.solutions import (
    SEPARATOR,
    Model,
    SolutionReward,
    SolutionScorer,
    last_question,
    message_text,
)


def trl_reward(
    model: Model,
    how: str = "difference",
    *,
    aggregate: str | None = None,
    separator: str = SEPARATOR,
    question_column: str | None = None,
    **numbers: Any,
) -> Callable[..., list[float | None]]:
    """A function for `GRPOTrainer(reward_funcs=...)`: the reward of each completion.

    TRL takes one number per completion, and gives each of its tokens the same advantage: the sum of the step rewards,
    or an aggregate of the scores. A completion with steps beyond the model's context has no reward (None), and TRL then
    leaves it out.

    Args:
        model: a checkpoint (folder or hub id), the URL of a running `pqm-fast serve`, or a scorer.
        how: a name in `REWARDS`.
        aggregate: instead of the sum, how `pqm_fast.evaluate.aggregate` makes one number of the scores.
        separator: between the steps of a completion.
        question_column: the column of the data set with the question alone, as the model was trained on it. Without
            one it is the prompt: the text, or the last message of the user.
        numbers: of `step_rewards`, or of `aggregate`.

    Raises:
        PQMError: the model cannot be loaded, an unknown name, or a number that does not fit. The function raises it for
            a column that is not there, and as `Scorer.score`.
    """
    scorer, reward = SolutionScorer(model, separator), SolutionReward(how, aggregate, **numbers)

    def reward_function(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        if question_column is not None and question_column not in columns:
            raise PQMError(f"question_column: the data set has no column {question_column!r}")
        questions = map(last_question, prompts) if question_column is None else columns[question_column]
        texts = [_completion_text(completion, separator) for completion in completions]
        all_scores = scorer.score(list(zip(questions, texts, strict=True)))
        if all_scores and (log_metric := columns.get("log_metric")):
            log_metric(f"rewards/{reward_function.__name__}/cut_off", sum(None in s for s in all_scores) / len(texts))
        return [None if None in scores else reward(scores) for scores in all_scores]

    reward_function.__name__ = f"pqm_{aggregate or how}".replace("-", "_")  # under this name TRL logs it
    return reward_function


def _completion_text(completion: Any, separator: str) -> str:
    """A text, or what the assistant wrote in a list of messages."""
    if isinstance(completion, str):
        return completion
    return separator.join(message_text(m.get("content")) for m in completion if m.get("role") == "assistant")
