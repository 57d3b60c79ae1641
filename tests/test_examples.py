"""The scripts of examples/, run as a user would, on a tiny model."""

import json
import math
import runpy
from pathlib import Path

import pytest
import tiny
import torch
from transformers import LlamaForCausalLM

from pqm_fast.data.encode import Template
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.step_q_model import StepQModel

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


def example(name: str) -> dict:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_fine_tune_then_choose(tmp_path, capsys):
    fine_tune, choose = example("fine_tune"), example("choose_best")
    line = {"question": "Q", "solution": "a\nb\nc\nd", "first_error": 3}
    labels = [True, True, False, None]
    assert fine_tune["record"](line) == {"prompt": "Q", "completions": ["a", "b", "c", "d"], "labels": labels}
    assert fine_tune["record"](line | {"first_error": None, "solution": "a\n\nb\n"})["labels"] == [True] * 2
    for beyond in (0, 5):
        with pytest.raises(ValueError, match=f"first_error is {beyond} in a solution of 4 steps"):
            fine_tune["record"](line | {"first_error": beyond})

    model = tiny.model_folder(tmp_path / "model", "llama")
    metrics = fine_tune["main"](fine_tune["Options"](model=str(model), out=tmp_path / "run", epochs=1))
    assert 0 <= metrics["auroc"] <= 1
    chosen = choose["main"](choose["Options"](model=str(tmp_path / "run")))
    assert len(chosen) == 6
    assert set(chosen) <= {0, 1, 2}
    assert capsys.readouterr().out.count("How many pens are left?") == 6


def test_choose_best_takes_the_highest_aggregate():
    class Scores:
        def score(self, solutions, *, lenient=False):
            return [[float(step) for step in steps] for _, steps in solutions]

    best = example("choose_best")["best"]
    candidates = [["4", "-1"], ["2", "1"], ["0", "9"]]
    assert best(Scores(), "Q", candidates, "min")[0] == 1
    assert best(Scores(), "Q", candidates, "last")[0] == 2


def test_own_training_loop_learns(tmp_path):
    torch.manual_seed(0)
    tiny.model_folder(tmp_path, "llama")
    LlamaForCausalLM(tiny.config("llama")).save_pretrained(tmp_path)
    loop = example("own_training_loop")
    lines = [{"question": "w5", "solution": "w3\nw3\nw4", "first_error": 3}, {"question": "w6", "solution": "w4\nw3"}]
    lines[1]["first_error"] = 1
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines * 12))
    options = loop["Options"](model=str(tmp_path), data=tmp_path / "data.jsonl", epochs=6, learning_rate=3e-3)
    losses = loop["main"](options)
    (tmp_path / "bad.jsonl").write_text('\n{"question": "Q", "solution": "w3\\nw4", "first_error": 3}\n')
    with pytest.raises(ValueError, match="first_error is 3 in a solution of 2 steps: 'Q'"):
        loop["main"](loop["Options"](model=str(tmp_path), data=tmp_path / "bad.jsonl"))
    assert all(map(math.isfinite, losses))
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


def test_grpo_step(tmp_path):
    pytest.importorskip("trl", reason="TRL is not installed (pip install trl==1.16.0)")
    torch.manual_seed(0)
    policy = tiny.model_folder(tmp_path / "policy", "llama")
    LlamaForCausalLM(tiny.config("llama")).save_pretrained(policy)
    model = StepQModel.from_pretrained(str(tiny.model_folder(tmp_path / "model", num_hidden_layers=1)))
    model.save(tmp_path / "verifier", tiny.tokenizer(90), Recipe(Template(step_token="last")))

    grpo = example("grpo_step")
    options = grpo["Options"](policy=str(policy), verifier=str(tmp_path / "verifier"), out=tmp_path / "out")
    options.max_tokens, options.learning_rate, options.separator = 8, 1e-2, "w7"
    [entry] = grpo["main"](options)
    assert -1 <= entry["reward"] <= 1
    trained = LlamaForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    before = LlamaForCausalLM.from_pretrained(policy).state_dict()
    assert any(not torch.equal(trained[name], before[name]) for name in before)

    [row] = grpo["prompts"]([{"question": "Q"}], chat=True)
    assert row["question"] == "Q"
    assert row["prompt"] == [{"role": "user", "content": grpo["INSTRUCTION"] + "Q"}]


def test_the_readme_shows_what_is_stored():
    stored = json.loads((ROOT / "benchmarks" / "results" / "readme-example-cpu.json").read_text())
    printed = "\n".join(stored["printed"])
    assert f"```\n{printed}\n```" in (ROOT / "README.md").read_text()
    assert 45 < stored["seconds"] < 75  # "in a minute"
