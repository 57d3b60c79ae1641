"""Steps that a run leaves out, and records that it is told to leave out."""

import json
import math
import shutil

import pytest
from cut_off import cut_off
from untimed import untimed

from pqm_fast.errors import Diverged
from pqm_fast.train import loop, step
from pqm_fast.train.loop import train
from pqm_fast.train.metrics_file import read_metrics


@pytest.fixture
def disturb(monkeypatch):
    """Multiplies the loss of the steps `factors` names, numbered from 1, and so their gradients."""

    def by(factors):
        calls = [0]

        def backward(model, *given, whole=step.backward, **named):
            calls[0] += 1
            outputs = whole(model, *given, **named)
            for parameter in model.parameters():
                parameter.grad.mul_(factors.get(calls[0], 1.0))
            return outputs

        monkeypatch.setattr(step, "backward", backward)

    return by


def rows(folder, kind):
    return [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == kind]


def test_a_step_that_is_not_finite_changes_nothing(configure, tmp_path, monkeypatch, disturb):
    """No weight, that is; and the log names it."""
    disturb({3: math.nan, 6: math.inf})
    moved = {}

    def moves(model, *given, whole=loop.train_step, **named):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        result = whole(model, *given, **named)
        moved[len(moved) + 1] = any(not old.equal(new) for old, new in zip(before, model.parameters(), strict=True))
        return result

    monkeypatch.setattr(loop, "train_step", moves)
    train(configure(save_every=2, max_steps=8))
    assert moved == {step: step not in (3, 6) for step in range(1, 9)}
    skipped = rows(tmp_path / "run", "skipped")
    assert [(row["step"], row["reason"], row["records"]) for row in skipped] == [(s, "not finite", []) for s in (3, 6)]
    train_rows = rows(tmp_path / "run", "train")
    assert [row.get("skipped", 0) for row in train_rows] == [0, 0, 1, 0, 0, 1, 0, 0]
    assert train_rows[2]["grad_norm"] is None
    assert all(math.isfinite(row["loss"]) for row in train_rows if row["loss"] is not None)
    assert all(json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())


def test_a_spike_is_left_out_also_after_a_resumption(configure, tmp_path, disturb):
    """What counts as a spike is part of a checkpoint."""
    options = {
        "max_steps": 41,
        "save_every": 38,
        "skip_spikes": 6.0,
        "clip": 0.0,
        "learning_rate": 1e-4,
        "log_every": 10,
    }
    disturb({34: 1000.0, 36: 1000.0, 40: 1000.0})
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(configure("whole", **options))
    skipped = rows(whole, "skipped")
    assert [(row["step"], row["reason"]) for row in skipped] == [(34, "spike"), (36, "spike"), (40, "spike")]
    assert [row.get("skipped") for row in rows(whole, "train")] == [None, None, None, 3, None]
    assert skipped[0]["records_in_all"] == len(skipped[0]["records"]) > 1
    shutil.copytree(whole, run)
    cut_off(run, 38)
    disturb({2: 1000.0})
    train(configure("run", resume=True, **options))
    assert untimed(run / "metrics.jsonl") == untimed(whole / "metrics.jsonl")
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_too_many_in_a_row_end_the_run(configure, tmp_path, disturb):
    disturb(dict.fromkeys((2, 3, 5, 6, 7, 8), math.nan))
    with pytest.raises(Diverged, match=r"step 8: .*gradient norm nan; all Q-values are finite.*4 steps in a row were"):
        train(configure(max_skipped=4))
    assert [row["step"] for row in rows(tmp_path / "run", "skipped")] == [2, 3, 5, 6, 7, 8]
