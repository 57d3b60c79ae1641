"""What an evaluation during training measures."""

import numpy as np
import pytest
import tiny
import torch

from pqm_fast.evaluate import calibrated_metrics, cross_thresholds
from pqm_fast.train.evaluation import evaluate, evaluated
from pqm_fast.train.run import prepare


@pytest.mark.parametrize("limit", [None, 20])
def test_evaluation_is_the_loss_and_metrics_of_its_trajectories(configure, limit):
    """All that are held out, or some of them."""
    run = prepare(configure(eval_fraction=0.5, loss="bce"))
    got = evaluate(run, run.held_out, limit)
    batch = run.held_out.pack(evaluated(run, run.held_out, limit))
    q = run.model.eval().scores(batch).double()
    y = batch.labels.double()
    expected = -(y * torch.sigmoid(q).log() + (1 - y) * torch.sigmoid(-q).log()).mean()
    assert got["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert got["step_accuracy"] == pytest.approx(float(((q >= 0) == (y > 0.5)).double().mean()))
    assert got["trajectories"] == batch.num_trajectories == (limit or len(run.held_out))
    ends = batch.cu_steps[1:-1].tolist()
    per_trajectory, labels = (np.split(column.float().numpy(), ends) for column in (q, y))
    questions = [str(run.held_out.dataset.question[i]) for i in batch.members]
    calibrated = calibrated_metrics(per_trajectory, labels, cross_thresholds(per_trajectory, labels, questions))
    assert None not in calibrated.values()
    assert {name: got[name] for name in calibrated} == pytest.approx(calibrated)


def test_evaluation_in_trees_equals_that_of_plain_packing(configure, branching):
    trees, plain = (prepare(configure(eval_fraction=0.5, prefix_tree=on, **branching)) for on in (True, False))
    plain.model.load_state_dict(trees.model.state_dict())
    for limit in (None, 30):
        got, expected = evaluate(trees, trees.held_out, limit), evaluate(plain, plain.held_out, limit)
        assert got == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_evaluation_has_no_dropout(configure, tmp_path):
    model = str(tiny.model_folder(tmp_path / "dropout", num_hidden_layers=2, attention_dropout=0.5))
    run = prepare(configure(model=model, eval_fraction=0.5))
    run.model.train()
    assert evaluate(run, run.held_out) == pytest.approx(evaluate(run, run.held_out), nan_ok=True, abs=0, rel=0)
