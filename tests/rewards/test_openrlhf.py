"""OpenRLHF's own executor of a single turn loads a user's file with our reward function."""

import asyncio
import math
from types import SimpleNamespace

import pytest
import tiny

from pqm_fast import Scorer
from pqm_fast.rewards import step_rewards

agent = pytest.importorskip("openrlhf.utils.agent", reason="OpenRLHF is not installed (make integrations)")

USERS_FILE = """
from pqm_fast.rewards.adapters import openrlhf_reward
reward_func = openrlhf_reward({model!r}, "soft-min", separator="w7", end_tokens=["<eos>"])
"""


class Engine:
    """What the executor asks of vLLM: it answers with fixed tokens."""

    async def generate(self, prompt_token_ids, sampling_params, multi_modal_data=None):
        output = SimpleNamespace(token_ids=[10, 11, 7, 12, 1], finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


@pytest.fixture
def response(tmp_path, checkpoint):
    (tmp_path / "reward.py").write_text(USERS_FILE.format(model=str(checkpoint)))
    executor = agent.SingleTurnAgentExecutor(remote_rm_url=[str(tmp_path / "reward.py")])
    sampling = SimpleNamespace(max_tokens=8, logprobs=None)
    return asyncio.run(
        executor.execute("w3 w4", "7", sampling, max_length=64, hf_tokenizer=tiny.tokenizer(90), llm_engine=Engine())
    )


@pytest.fixture
def expected(checkpoint):
    [q] = Scorer.from_pretrained(checkpoint).score([("w3 w4", ["w10 w11", "w12"])])
    return math.fsum(step_rewards(q, "soft-min"))


def test_reward_function(response, expected):
    assert response["reward"].tolist() == response["scores"].tolist() == [pytest.approx(expected, rel=1e-6)]
    assert {name: value.item() for name, value in response["extra_logs"].items()} == {"steps": 2, "cut_off": 0}


def test_what_the_trainer_makes_of_it(response, expected, unused_imports):
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    experience = SamplesGenerator._process_response_into_experience(None, response)
    assert experience.rewards.shape == experience.scores.shape == (1,)
    assert experience.rewards.item() == pytest.approx(expected, rel=1e-6)
    assert {name: experience.info[name].item() for name in ("steps", "cut_off")} == {"steps": 2, "cut_off": 0}
