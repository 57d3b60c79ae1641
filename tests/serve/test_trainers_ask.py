"""The code with which OpenRLHF and verl ask their reward models, against a server."""

import asyncio
import math
from types import SimpleNamespace

import pytest
import tiny
from serving import config, running

QUESTION, STEPS = "w3 w4", ["w10 w11", "w12"]


@pytest.fixture
def reward(scorer):
    """The lowest probability of a step."""
    return pytest.approx(1 / (1 + math.exp(-min(scorer.score([(QUESTION, STEPS)])[0]))), abs=1e-5)


class Engine:
    """What OpenRLHF asks of vLLM: it answers with the tokens of the steps, w7 between them, and the end."""

    async def generate(self, prompt_token_ids, sampling_params, multi_modal_data=None):
        output = SimpleNamespace(token_ids=[10, 11, 7, 12, 1], finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


def test_openrlhf(model, reward):
    agent = pytest.importorskip("openrlhf.utils.agent", reason="OpenRLHF is not installed (make integrations)")
    sampling = SimpleNamespace(max_tokens=8, logprobs=None)
    with running(config(model, conversation="w70 {prompt} w71{solution}", text_separator="w7 ")) as server:
        executor = agent.SingleTurnAgentExecutor(remote_rm_url=[f"{server.url}/get_reward"])
        answer = asyncio.run(
            executor.execute(
                f"w70 {QUESTION} w71", "7", sampling, 64, hf_tokenizer=tiny.tokenizer(90), llm_engine=Engine()
            )
        )
    assert answer["reward"] == answer["scores"] == [reward]
    assert answer["extra_logs"] == {"steps": [2.0], "steps_beyond_context": [0.0]}


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_verl(server, reward, engine):
    loop = pytest.importorskip(
        "verl.experimental.reward_loop.reward_loop", reason="verl is not installed (make integrations)"
    )
    worker = object.__new__(loop.RewardLoopWorker)
    rollout = SimpleNamespace(name=engine)
    worker.config = SimpleNamespace(
        reward=SimpleNamespace(reward_model=SimpleNamespace(model_path="/models/run", rollout=rollout))
    )
    worker.reward_router_address = server.url.removeprefix("http://")

    async def written(data):
        return f"[user] {QUESTION} [assistant] w10 w11\n\nw12<eos>"

    worker._preprocess_reward_inputs = written
    assert asyncio.run(worker.compute_score_disrm(None)) == {"reward_score": reward}
