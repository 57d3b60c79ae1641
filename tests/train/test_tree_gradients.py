"""Prefix trees do not change the loss or the gradient of any parameter, in one batch or in several, and neither do
other layouts of whole questions."""

import math

import numpy as np
import pytest
import tiny
import torch
from pqm_kernels import LOSSES

from pqm_fast.data.batches import PackingUnits
from pqm_fast.data.pack import pack
from pqm_fast.data.trajectory import Trajectory
from pqm_fast.model.step_q_model import StepQModel


def solutions(questions=4, each=6, seed=0):
    """(trajectories, question of each): solutions that share first steps, some of them equal, some cut short."""
    rng = np.random.default_rng(seed)
    made, question = [], []
    for number in range(questions):
        asked = rng.integers(3, 90, 5).tolist()
        earlier = [[]]
        for _ in range(each):
            stem = earlier[rng.integers(len(earlier))]
            new = [rng.integers(3, 90, rng.integers(1, 5)).tolist() for _ in range(rng.integers(0, 4))]
            steps = [*stem[: rng.integers(len(stem) + 1)], *new] or [[7]]
            earlier.append(steps)
            rows = np.cumsum([len(s) for s in steps]) + len(asked) - 1
            ids = np.array(asked + [token for s in steps for token in s], dtype=np.int32)
            labels = rng.integers(0, 2, len(rows)).astype(np.float32)
            made.append(Trajectory(ids, rows.astype(np.int32), labels, outcome=(1.0, 0.0, math.nan)[len(made) % 3]))
            question.append(number)
    return made, np.array(question)


def learn(model, batches, loss, **options):
    """(loss, {member: scores}, gradients) of one optimizer step in these batches."""
    model.zero_grad()
    total = sum(b.num_steps if LOSSES[loss].normalised_by == "steps" else b.num_trajectories for b in batches)
    value, scores = 0.0, {}
    for batch in batches:
        out = model(batch, loss=loss, zeta=2.0, normalizer=float(total), **options)
        out.loss.backward()
        value += float(out.loss.detach())
        scores |= dict(zip(batch.members, out.q.split(batch.cu_steps.diff().tolist()), strict=True))
    return value, scores, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("architecture", "loss"), [("llama", "rank"), ("mistral", "bce"), ("qwen2", "rank"), ("qwen3", "bce")]
)
def test_trees_give_the_gradient_of_plain_packing(tmp_path, architecture, loss):
    torch.manual_seed(0)
    model = StepQModel.from_pretrained(str(tiny.model_folder(tmp_path / architecture, architecture)))
    made, question = solutions()
    lengths = np.array([len(t.input_ids) for t in made])
    expected_loss, expected_scores, expected = learn(model, [pack(list(enumerate(made)))], loss)
    assert len(expected) >= 3 * 7  # every layer has one
    for budget, padded in ((4096, None), (4096, 256), (int(lengths.max()) + 10, None)):
        units = PackingUnits.questions(np.arange(len(made)), question, lambda i: made[i].input_ids, budget, share=True)
        batches = [
            pack([(i, made[i]) for i in members], question=question[members], pad_to=padded)
            for members in units.batches(budget)
        ]
        assert sum(b.num_tokens for b in batches) < 0.9 * lengths.sum()
        assert any(len(b.step_tokens.unique()) < b.num_steps for b in batches)  # rows with steps of several
        assert (len(batches) == 1) == (budget == 4096)
        value, scores, gradients = learn(model, batches, loss)
        assert value == pytest.approx(expected_loss, rel=1e-5)
        assert scores.keys() == expected_scores.keys()
        for member, q in expected_scores.items():
            assert (scores[member] - q).abs().max() <= 1e-5
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            assert tiny.relative_error(gradients[name], gradient) <= 1e-5, (name, budget)


@pytest.mark.parametrize(
    ("loss", "compare"),
    [("sibling", None), ("group-rank", None), ("bce", "sibling"), ("rank", "listwise")],
)
def test_every_layout_of_whole_questions_gives_one_gradient(tmp_path, loss, compare):
    """In trees or not, in one batch or in several, in any order."""
    torch.manual_seed(0)
    model = StepQModel.from_pretrained(str(tiny.model_folder(tmp_path / "qwen2", "qwen2")))
    made, question = solutions()
    options = {"compare": compare, "compare_weight": 0.5, "temperature": 0.7}
    everything = pack(list(enumerate(made)), question=question, share=False)
    expected_loss, expected_scores, expected = learn(model, [everything], loss, **options)
    assert sum(float(gradient.norm()) for gradient in expected.values()) > 1e-3
    shuffled = np.random.default_rng(1).permutation(len(made))
    for share, budget in ((True, 4096), (True, 100), (False, 200)):
        units = PackingUnits.questions(shuffled, question[shuffled], lambda i: made[i].input_ids, budget, share=share)
        assert not units.divided
        batches = [
            pack([(i, made[i]) for i in members], question=question[members], share=share)
            for members in units.batches(budget)
        ]
        assert (len(batches) == 1) == (budget == 4096)
        value, scores, gradients = learn(model, batches, loss, **options)
        assert value == pytest.approx(expected_loss, rel=1e-5)
        for member, q in expected_scores.items():
            assert (scores[member] - q).abs().max() <= 1e-5
        for name, gradient in expected.items():
            if loss in tiny.WITHOUT_LEVEL and name.endswith("score.bias"):
                assert gradients[name].abs() <= 1e-7
                continue
            assert tiny.relative_error(gradients[name], gradient) <= 1e-5, (name, share, budget)
