"""Steps of TRL's GRPOTrainer with our rewards."""

import math

import pytest
import tiny
import torch
from transformers import LlamaForCausalLM

from pqm_fast import Scorer
from pqm_fast.rewards import step_rewards
from pqm_fast.rewards.adapters import trl_reward

trl = pytest.importorskip("trl", reason="TRL is not installed (pip install trl==1.16.0)")
TEMPLATE = (
    "{% for message in messages %}w8 {{ message.content }} {% endfor %}{% if add_generation_prompt %}w9 {% endif %}"
)


class Recorded:
    """A scorer that keeps what it was asked and what it answered, and leaves out the last step of every `missing`-th
    solution."""

    def __init__(self, checkpoint, missing=0):
        self.scorer, self.missing, self.solutions, self.scores = Scorer.from_pretrained(checkpoint), missing, [], []

    def score(self, solutions):
        scores = self.scorer.score(solutions)
        if self.missing:
            scores = [[*s[:-1], None] if n % self.missing == 0 else s for n, s in enumerate(scores)]
        self.solutions += solutions
        self.scores += scores
        return scores


@pytest.fixture
def policy(tmp_path):
    torch.manual_seed(0)
    tiny.model_folder(tmp_path / "policy", "llama")
    LlamaForCausalLM(tiny.config("llama")).save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def train(policy, rewards, prompts, chat=False, **columns):
    from datasets import Dataset

    tokenizer = tiny.tokenizer(90)
    tokenizer.padding_side, tokenizer.chat_template = "left", TEMPLATE if chat else None
    args = trl.GRPOConfig(
        output_dir=str(policy.parent / "out"),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=24,
        learning_rate=1e-2,
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    data = Dataset.from_dict({"prompt": prompts, **columns})
    trainer = trl.GRPOTrainer(
        model=str(policy), processing_class=tokenizer, train_dataset=data, reward_funcs=rewards, args=args
    )
    before = [weight.clone() for weight in trainer.model.parameters()]
    trainer.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    return [entry for entry in trainer.state.log_history if "reward" in entry]


def test_steps_of_grpo(policy, checkpoint):
    scorer = Recorded(checkpoint)
    log = train(policy, trl_reward(scorer, "soft-min", separator="w7"), ["w3 w4", "w5 w6"])
    assert len(log) == 2
    assert len(scorer.solutions) == 8
    assert {question for question, _ in scorer.solutions} <= {"w3 w4", "w5 w6"}
    for number, entry in enumerate(log):
        rewards = [math.fsum(step_rewards(s, "soft-min")) for s in scorer.scores[4 * number : 4 * number + 4]]
        assert entry["reward"] == entry["rewards/pqm_soft_min/mean"] == pytest.approx(sum(rewards) / 4, rel=1e-5)
        assert entry["rewards/pqm_soft_min/cut_off"] == 0
        assert entry["reward_std"] > 0


def test_messages_a_column_and_completions_that_do_not_fit(policy, checkpoint):
    scorer = Recorded(checkpoint, missing=4)
    prompts = [[{"role": "user", "content": "w3 w4"}], [{"role": "user", "content": "w3 w5"}]]
    log = train(policy, trl_reward(scorer, aggregate="last", separator="w7"), prompts, chat=True)
    assert {question for question, _ in scorer.solutions} <= {"w3 w4", "w3 w5"}
    for number, entry in enumerate(log):
        known = [s[-1] for s in scorer.scores[4 * number : 4 * number + 4] if s[-1] is not None]
        assert len(known) == 3
        assert entry["reward"] == pytest.approx(sum(known) / 3, rel=1e-5)
        assert entry["rewards/pqm_last/cut_off"] == 0.25

    scorer = Recorded(checkpoint)
    train(policy, trl_reward(scorer, separator="w7", question_column="bare"), prompts, chat=True, bare=["w4", "w5"])
    assert {question for question, _ in scorer.solutions} <= {"w4", "w5"}
