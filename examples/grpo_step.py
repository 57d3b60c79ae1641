"""Reinforcement learning with the rewards of a verifier: GRPO, with TRL's trainer (pip install trl).

    python examples/grpo_step.py --policy HuggingFaceTB/SmolLM2-135M-Instruct --verifier runs/mine --out runs/policy

Without a GPU a step of so small a policy takes minutes. How to choose the reward: docs, Step rewards.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from pqm_fast.rewards.adapters import trl_reward

DATA = Path(__file__).with_name("candidates.jsonl")
INSTRUCTION = "Solve the problem step by step, one step a line.\n\n"


@dataclass
class Options:
    """Train a policy on the rewards of a verifier."""

    policy: str
    """Folder or hub id of the model that writes solutions."""
    verifier: str
    """The run folder of `pqm-fast train`, or the URL of `pqm-fast serve`."""
    out: Path
    """Folder for the trained policy."""
    data: Path = DATA
    """JSON lines with `question`."""
    reward: Literal["difference", "probability-difference", "log-sigmoid", "soft-min"] = "soft-min"
    """The reward of a step; TRL gets the sum for each solution."""
    separator: str = "\n"
    """Between the steps of a solution."""
    steps: int = 1
    """Updates of the policy."""
    solutions: int = 4
    """Sampled for each question, and compared with each other."""
    max_tokens: int = 128
    """Of a solution."""
    learning_rate: float = 1e-6
    """Peak learning rate."""


def prompts(lines: list[dict[str, Any]], chat: bool) -> Dataset:
    """`prompt` for the policy, and `question` for the verifier, which was trained on questions without instruction."""
    texts = [INSTRUCTION + line["question"] for line in lines]
    written = [[{"role": "user", "content": text}] for text in texts] if chat else [text + "\n\n" for text in texts]
    return Dataset.from_list(
        [{"prompt": p, "question": line["question"]} for p, line in zip(written, lines, strict=True)]
    )


def main(options: Options) -> list[dict[str, float]]:
    gpu = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(options.policy, padding_side="left")
    lines = [json.loads(line) for line in options.data.read_text(encoding="utf-8").splitlines() if line.strip()]
    trainer = GRPOTrainer(
        model=options.policy,
        processing_class=tokenizer,
        train_dataset=prompts(lines, chat=tokenizer.chat_template is not None),
        reward_funcs=trl_reward(
            options.verifier, options.reward, separator=options.separator, question_column="question"
        ),
        args=GRPOConfig(
            output_dir=str(options.out),
            max_steps=options.steps,
            per_device_train_batch_size=options.solutions,
            num_generations=options.solutions,
            max_completion_length=options.max_tokens,
            learning_rate=options.learning_rate,
            use_cpu=not gpu,
            bf16=gpu,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        ),
    )
    trainer.train()
    trainer.save_model()
    return [entry for entry in trainer.state.log_history if "reward" in entry]


if __name__ == "__main__":
    main(tyro.cli(Options))
