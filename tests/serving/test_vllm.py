"""A real vLLM server returns the Q-values of Scorer. `make serving` installs one, and runs this.

CHECKPOINT: the folder of a checkpoint to compare, too.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from vllm_server import VLLM, pooled, vllm_server

from pqm_fast.data.encode import Encoded, Template
from pqm_fast.data.records import Record
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.scoring.scorer import Scorer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not VLLM.exists(), reason=f"no {VLLM}: `make serving` installs it"),
]
STEP_ID = 90
QUESTION = "Ann has 7 boxes of 2 pens and gives away 7 pens. How many pens are left?"
SOLUTIONS = [
    ["7 boxes of 2 pens are 7 * 2 = 14 pens.", "14 + 7 = 21, so 21 pens are left."],
    ["7 boxes of 2 pens are 7 + 2 = 9 pens.", "9 - 7 = 2, so 2 pens are left."],
    ["7 boxes of 2 pens are 7 * 2 = 14 pens.", "She gives away 7.\n\n14 - 7 = 7", "So 7 pens are left."],
]


def checkpoint(folder: Path, architecture: str, step_token: str) -> Path:
    """A small model with a head whose weights and bias are so large that no part of it can be missed."""
    torch.manual_seed(0)
    base = tiny.model_folder(folder / "base", architecture, hidden_size=128, head_dim=32, num_key_value_heads=2)
    model = StepQModel.from_pretrained(str(base))
    tokenizer = tiny.tokenizer(STEP_ID)
    model.fit_vocabulary(tokenizer, step_token)
    with torch.no_grad():
        model.head.weight.normal_(0, 0.3)
        model.head.bias.fill_(3.0)
    model.save(folder / "run", tokenizer, Recipe(Template(step_token=step_token)), torch.float32)
    return folder / "run"


def random_solutions(step_token: str) -> list[Encoded]:
    rng = np.random.default_rng(0)
    end = [] if step_token == "last" else [STEP_ID]
    solutions = []
    for _ in range(8):
        ids, step_tokens = rng.integers(3, STEP_ID, 5).tolist(), []
        for length in rng.integers(1, 8, rng.integers(1, 6)):
            ids += [*rng.integers(3, STEP_ID, length).tolist(), *end]
            step_tokens.append(len(ids) - 1)
        solutions.append(Encoded(np.array(ids, np.int32), np.array(step_tokens, np.int32), 0))
    return solutions


def largest_difference(folder: Path, solutions: list[Encoded] | None, log: Path, port: int) -> float:
    """Between the Q-values of vLLM and of Scorer, both in float32; None: those of SOLUTIONS."""
    scorer = Scorer.from_pretrained(folder, device="cpu", dtype="float32")
    if solutions is None:
        solutions = scorer.encoder([Record("r", QUESTION, steps) for steps in SOLUTIONS])
    ours = scorer.score_encoded([(QUESTION, solution) for solution in solutions])
    differences = []
    with vllm_server(folder, log, port) as address:
        for solution, own in zip(solutions, ours, strict=True):
            values = pooled(address, folder, solution.input_ids.tolist())
            if scorer.encoder.step_id is None:
                assert len(values) == len(solution.input_ids)
                values = [values[token] for token in solution.step_tokens]
            differences += [abs(a - b) for a, b in zip(values, own, strict=True)]
    assert max(map(len, ours)) > 1
    print(f"{folder}: {len(differences)} Q-values, largest difference {max(differences):.1e}")
    return max(differences)


@pytest.mark.parametrize(
    ("architecture", "step_token"),
    [("llama", "<|step|>"), ("llama", "last"), ("qwen2", "<|step|>"), ("qwen3", "<|step|>")],
)
def test_vllm_returns_the_scores(architecture, step_token, tmp_path):
    folder = checkpoint(tmp_path, architecture, step_token)
    assert largest_difference(folder, random_solutions(step_token), tmp_path / "log", 8765) <= 1e-4


def test_vllm_returns_the_scores_of_a_given_checkpoint(tmp_path):
    if not os.environ.get("CHECKPOINT"):
        pytest.skip("set CHECKPOINT to the folder of a checkpoint")
    assert largest_difference(Path(os.environ["CHECKPOINT"]).resolve(), None, tmp_path / "log", 8765) <= 1e-4
