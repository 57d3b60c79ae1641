"""verl: a custom reward function, and a reward manager that puts the reward of each step at its last token."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pqm_fast.errors import PQMError
from pqm_fast.rewards.solutions import SEPARATOR, Model, SolutionReward, SolutionScorer, last_question
from pqm_fast.rewards.spans import step_tokens, token_rewards
from pqm_fast.rewards.step_rewards import step_rewards
from pqm_fast.scoring.stored import Scores


def verl_reward(
    model: Model,
    how: str = "difference",
    *,
    separator: str = SEPARATOR,
    question_key: str = "question",
    **numbers: Any,
) -> Callable[..., dict[str, float]]:
    """verl's `compute_score(data_source, solution_str, ground_truth, extra_info)`: the sum of the step rewards.

    Args:
        model: a checkpoint (folder or hub id), the URL of a running `pqm-fast serve`, or a scorer. verl makes one in
            each of its reward workers: use a server.
        how: a name in `REWARDS`.
        separator: between the steps of a response.
        question_key: where `extra_info` of the data set has the question: verl does not pass the prompt.
        numbers: of `step_rewards`.

    Returns:
        A function that gives `score`, the number of `steps`, and `cut_off` (1 for a response with steps beyond the
        model's context, which have no reward). verl logs all of them.

    Raises:
        PQMError: the model cannot be loaded, an unknown name, or a number that does not fit. The function raises it for
            a question that is not there, and as `Scorer.score`.
    """
    scorer, reward = SolutionScorer(model, separator), SolutionReward(how, **numbers)

    def compute_score(
        data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None, **_: Any
    ) -> dict[str, float]:
        if extra_info is None or question_key not in extra_info:
            raise PQMError(f"{data_source}: `extra_info` of the data has no {question_key!r}; store the question there")
        [scores] = scorer.score([(extra_info[question_key], solution_str)])
        return {"score": reward(scores), **_logged(scores)}

    return compute_score


def verl_step_rewards(model: Model, how: str = "difference", *, separator: str = SEPARATOR, **numbers: Any) -> type:
    """A reward manager for `reward.reward_manager.source=importlib`: the reward of each step at its last token.

    The question is the last message of the user in the prompt. verl 0.9.1 has rewards per token only where its reward
    model shares the GPUs of the policy (`reward.reward_model.enable=True`, `enable_resource_pool=False`). Everywhere
    else it has one number per response, computed while it samples, and gets the sum.

    Args:
        model: a checkpoint (folder or hub id), the URL of a running `pqm-fast serve`, or a scorer. verl makes one in
            each of its reward workers: use a server.
        how: a name in `REWARDS`.
        separator: between the steps of a response.
        numbers: of `step_rewards`.

    Returns:
        A subclass of verl's `RewardManagerBase`.

    Raises:
        PQMError: the model cannot be loaded, an unknown name, or a number that does not fit; when it runs, as
            `Scorer.score`.
    """
    from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

    scorer, reward = SolutionScorer(model, separator), SolutionReward(how, **numbers)

    class StepRewardManager(RewardManagerBase):
        def __init__(self, config: Any, tokenizer: Any, compute_score: Any, **_: Any):
            super().__init__(config, tokenizer, compute_score)
            reward_model = config.reward.reward_model
            self.by_token = reward_model.enable and not reward_model.enable_resource_pool

        async def run_single(self, data: Any) -> dict[str, Any]:
            """`reward_score`: one number for each token of the last response, or their sum."""
            item = data[-1]
            responses = item.batch["responses"]
            ids = responses[: int(item.batch["attention_mask"][-len(responses) :].sum())].tolist()
            question = last_question(item.non_tensor_batch["raw_prompt"])
            steps, spans = step_tokens(ids, self.tokenizer, separator)
            [scores] = await asyncio.to_thread(scorer.score_steps, [(question, steps)])
            if self.by_token:
                rewards: Any = token_rewards(step_rewards(scores, how, **numbers), spans, len(ids))
            else:
                rewards = reward(scores)
            return {"reward_score": rewards, "reward_extra_info": _logged(scores)}

        @classmethod
        def assemble_rm_scores(cls, data: Any, scores: Sequence[Any]) -> Any:
            """[B, T] float32."""
            if not isinstance(scores[0], list):
                return super().assemble_rm_scores(data, scores)
            rm_scores = torch.zeros_like(data.batch["responses"], dtype=torch.float32)
            for row, by_token in zip(rm_scores, scores, strict=True):
                row[: len(by_token)] = torch.tensor(by_token)
            return rm_scores

    return StepRewardManager


def _logged(scores: Scores) -> dict[str, float]:
    return {"steps": float(len(scores)), "cut_off": float(None in scores)}
