"""Scorer: prefix trees give the scores of plain packing from fewer tokens; scores that are not finite; no solutions."""

import numpy as np
import pytest
import tiny
import torch

from pqm_fast.data.encode import Encoder, Template
from pqm_fast.errors import PQMError
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.scoring.scorer import Scorer


def candidates(rng, questions=5, each=8):
    """Solutions in any order that share their first steps, some the same, one question in other white space."""
    made = []
    for _ in range(questions):
        question, stem = tiny.text(rng, 6), [tiny.text(rng, 3) for _ in range(5)]
        for i in range(each):
            shared = int(rng.integers(6))
            asked = question.replace(" ", "  ") if i == 3 else question
            made.append((asked, stem[:shared] + [tiny.text(rng, 3)] * (shared < 4)))
    return [made[i] for i in rng.permutation(len(made))]


@pytest.mark.parametrize("max_tokens", [1, 60, 16384])
def test_trees_give_the_scores_of_plain_packing(tmp_path, monkeypatch, max_tokens):
    torch.manual_seed(0)
    model = StepQModel.from_pretrained(str(tiny.model_folder(tmp_path / "qwen3", "qwen3")))
    encoder = Encoder(tiny.tokenizer(), Template(step_token="last"), 18)  # the longest lose steps
    solutions = candidates(np.random.default_rng(0))
    computed = []
    scores = StepQModel.scores

    def counted(self, batch, *more):
        computed.append(batch.num_tokens)
        return scores(self, batch, *more)

    monkeypatch.setattr(StepQModel, "scores", counted)
    trees = Scorer(model, encoder, max_tokens, prefix_tree=True).score(solutions)
    in_trees, largest = sum(computed), max(computed)
    computed.clear()
    plain = Scorer(model, encoder, max_tokens, prefix_tree=False).score(solutions)
    assert any(None in own for own in trees)
    for (_, steps), got, expected in zip(solutions, trees, plain, strict=True):
        assert len(got) == len(steps)
        assert [q is None for q in got] == [q is None for q in expected]
        assert [q for q in got if q is not None] == pytest.approx([q for q in expected if q is not None], abs=1e-5)
    assert largest <= max(max_tokens, 18)
    if max_tokens >= 200:
        assert in_trees < 0.6 * sum(computed)
    else:
        assert in_trees <= sum(computed)


def test_half_precision_scores_are_close(tmp_path):
    torch.manual_seed(0)
    solutions = candidates(np.random.default_rng(0))
    model = StepQModel.from_pretrained(str(tiny.model_folder(tmp_path / "llama")))
    torch.nn.init.normal_(model.head.weight)
    model.save(tmp_path / "run", tiny.tokenizer(), Recipe(Template(step_token="last")))
    full, half = (
        np.concatenate(Scorer.from_pretrained(tmp_path / "run", device="cpu", dtype=dtype).score(solutions))
        for dtype in ("float32", "bfloat16")
    )
    assert (half != full).any()
    assert np.abs(half - full).mean() < 0.1 * full.std()


@pytest.mark.parametrize("prefix_tree", [True, False])
def test_scores_that_are_not_finite(tmp_path, prefix_tree):
    model = StepQModel.from_pretrained(str(tiny.model_folder(tmp_path / "llama")))
    encoder = Encoder(tiny.tokenizer(), Template(step_token="last"), 64)
    with torch.no_grad():
        model.embedding[21] = float("nan")
    scorer = Scorer(model, encoder, 1, prefix_tree)
    with pytest.raises(PQMError, match=r"solution 1: Q-values are not finite; check .*llama"):
        scorer.score([("w3", ["w4"]), ("w6", ["w7 w21", "w5"])])
    assert len(scorer.score([("w3", ["w4"])])) == 1


def test_nothing_to_score(tmp_path):
    model = StepQModel.from_pretrained(str(tiny.model_folder(tmp_path / "llama")))
    encoder = Encoder(tiny.tokenizer(), Template(step_token="last"), 64)
    for prefix_tree in (True, False):
        assert Scorer(model, encoder, prefix_tree=prefix_tree).score([]) == []
