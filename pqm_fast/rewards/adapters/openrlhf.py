"""A reward function for the file that OpenRLHF takes as `--reward.remote_url FILE.py`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pqm_fast.errors import PQMError
from pqm_fast.rewards.solutions import SEPARATOR, Model, SolutionReward, SolutionScorer

END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "</s>")


def openrlhf_reward(
    model: Model,
    how: str = "difference",
    *,
    separator: str = SEPARATOR,
    question: Callable[[str], str] = str,
    end_tokens: Sequence[str] = END_TOKENS,
    **numbers: Any,
) -> Callable[..., dict[str, Any]]:
    """OpenRLHF's `reward_func(queries, prompts, labels)`: the sum of the step rewards of each response.

    Args:
        model: a checkpoint (folder or hub id), the URL of a running `pqm-fast serve`, or a scorer.
        how: a name in `REWARDS`.
        separator: between the steps of a response.
        question: gives the question alone, of a prompt that a chat template has written.
        end_tokens: special tokens that end a response: OpenRLHF leaves them in the text.
        numbers: of `step_rewards`.

    Returns:
        A function that gives `rewards` and `scores` [queries] float32 and, in `extra_logs`, the number of `steps` and
        `cut_off` (1 for a response with steps beyond the model's context, which have no reward).

    Raises:
        PQMError: the model cannot be loaded, an unknown name, or a number that does not fit. The function raises it for
            a query that does not begin with its prompt, and as `Scorer.score`; OpenRLHF logs errors, and goes on
            without a reward.
    """
    scorer, reward = SolutionScorer(model, separator), SolutionReward(how, **numbers)

    def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Any = None, **_: Any) -> dict[str, Any]:
        pairs = []
        for query, prompt in zip(queries, prompts, strict=True):
            if not query.startswith(prompt):
                raise PQMError(f"a query does not begin with its prompt: {prompt[:80]!r}; make room for whole prompts")
            response = query[len(prompt) :]
            end = min((at for token in end_tokens if (at := response.find(token)) >= 0), default=len(response))
            pairs.append((question(prompt), response[:end]))
        all_scores = scorer.score(pairs)
        rewards = torch.tensor([reward(scores) for scores in all_scores], dtype=torch.float32)
        steps = torch.tensor([len(scores) for scores in all_scores], dtype=torch.float32)
        cut_off = torch.tensor([None in scores for scores in all_scores], dtype=torch.float32)
        return {"rewards": rewards, "scores": rewards, "extra_logs": {"steps": steps, "cut_off": cut_off}}

    return reward_func
