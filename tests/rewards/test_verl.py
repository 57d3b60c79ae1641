"""verl's own loaders, reward manager and reward worker, with our reward function and our reward manager."""

import asyncio

import numpy as np
import pytest
import tiny
import torch

from pqm_fast.errors import PQMError
from pqm_fast.rewards import step_rewards

verl = pytest.importorskip("verl", reason="verl is not installed (make integrations)")

USERS_FILE = """
from pqm_fast.rewards.adapters import verl_reward, verl_step_rewards
compute_score = verl_reward({model!r}, "soft-min", separator="w7")
StepRewards = verl_step_rewards({model!r}, separator="w7")
"""
# two responses of a batch, padded on the right with 0; token w7 separates steps
RESPONSES = [[10, 11, 7, 12, 1, 0], [13, 1, 0, 0, 0, 0]]
STEPS = [["w10 w11", "w12"], ["w13"]]
ENDS = [[1, 3], [0]]  # the last token of each step
QUESTION = "w3 w4"


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer(90)


@pytest.fixture
def config(tmp_path, checkpoint, tokenizer):
    """What verl's loaders read of its configuration."""
    from omegaconf import OmegaConf

    file = tmp_path / "reward.py"
    file.write_text(USERS_FILE.format(model=str(checkpoint)))
    tokenizer.save_pretrained(tmp_path / "policy")
    reward = {
        "custom_reward_function": {"path": str(file), "name": "compute_score", "reward_kwargs": {}},
        "reward_manager": {"source": "register", "name": "naive", "module": {"path": None, "name": None}},
        "reward_model": {"enable": False, "enable_resource_pool": False},
        "sandbox_fusion": None,
    }
    model = {"path": str(tmp_path / "policy"), "tokenizer_path": None}
    return OmegaConf.create({"reward": reward, "actor_rollout_ref": {"model": model}})


@pytest.fixture
def batch():
    from tensordict import TensorDict

    responses = torch.tensor(RESPONSES)
    prompts = torch.tensor([[3, 4], [3, 4]])
    attention_mask = torch.cat([torch.ones_like(prompts), (responses != 0).long()], 1)
    tensors = {"prompts": prompts, "responses": responses, "attention_mask": attention_mask}

    def column(value):
        values = np.empty(2, dtype=object)
        values[:] = [value, value]
        return values

    columns = {
        "data_source": np.array(["d", "d"], dtype=object),
        "reward_model": column({"ground_truth": "7"}),
        "extra_info": column({"question": QUESTION}),
        "raw_prompt": column([{"role": "user", "content": QUESTION}]),
    }
    return verl.DataProto(batch=TensorDict(tensors, batch_size=2), non_tensor_batch=columns)


@pytest.fixture
def scores(checkpoint):
    from pqm_fast import Scorer

    return Scorer.from_pretrained(checkpoint).score([(QUESTION, steps) for steps in STEPS])


def rewarded(manager, batch):
    """What `RewardLoopManager.compute_rm_score` does with the results of its workers."""
    results = [manager.loop.run_until_complete(manager.run_single(batch[i : i + 1])) for i in range(len(batch))]
    return results, manager.assemble_rm_scores(batch, [result["reward_score"] for result in results])


def test_reward_function(config, tokenizer, batch, scores):
    from verl.trainer.ppo.reward import load_reward_manager

    results, rm_scores = rewarded(load_reward_manager(config, tokenizer), batch)
    expected = torch.zeros(2, 6)
    expected[0, 4], expected[1, 1] = (sum(step_rewards(q, "soft-min")) for q in scores)  # at the last token
    torch.testing.assert_close(rm_scores, expected)
    assert [result["reward_extra_info"]["steps"] for result in results] == [2, 1]


def test_reward_of_each_step_at_its_last_token(config, tokenizer, batch, scores):
    from verl.trainer.ppo.reward import load_reward_manager

    config.reward.reward_manager.update(
        {"source": "importlib", "name": "StepRewards", "module": {"path": config.reward.custom_reward_function.path}}
    )
    config.reward.reward_model.enable = True  # and on the GPUs of the policy: a reward per token
    results, rm_scores = rewarded(load_reward_manager(config, tokenizer), batch)
    expected = torch.zeros(2, 6)
    for row, ends, q in zip(expected, ENDS, scores, strict=True):
        row[ends] = torch.tensor(step_rewards(q))
    torch.testing.assert_close(rm_scores, expected)
    assert [result["reward_extra_info"] for result in results] == [{"steps": n, "cut_off": 0} for n in (2, 1)]

    config.reward.reward_model.enable = False  # one number per response
    _, rm_scores = rewarded(load_reward_manager(config, tokenizer), batch)
    torch.testing.assert_close(rm_scores[[0, 1], [4, 1]], expected.sum(1))
    torch.testing.assert_close(rm_scores.sum(1), expected.sum(1))


def test_reward_worker(config, batch, scores):
    """The class that verl's Ray actors run."""
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    async def results():
        return await RewardLoopWorker(config).compute_score_batch(batch)

    got = [result["reward_score"] for result in asyncio.run(results())]
    assert got == pytest.approx([sum(step_rewards(q, "soft-min")) for q in scores], rel=1e-5)


def test_a_question_that_is_not_there(config, tokenizer, batch):
    from verl.trainer.ppo.reward import load_reward_manager

    manager = load_reward_manager(config, tokenizer)
    batch.non_tensor_batch["extra_info"][0] = {"index": 1}
    with pytest.raises(PQMError, match="d: `extra_info` of the data has no 'question'"):
        rewarded(manager, batch)
