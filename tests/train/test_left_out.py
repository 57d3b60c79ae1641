"""Steps that a run leaves out, and records that it is told to leave out."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from untimed import untimed

from pqm_fast.errors import Diverged, PQMError
from pqm_fast.train import loop, step
from pqm_fast.train.loop import train
from pqm_fast.train.metrics_file import read_metrics
from pqm_fast.train.run import prepare

pytestmark = pytest.mark.usefixtures("no_picture")


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
        "max_steps": 50,
        "save_every": 45,
        "skip_spikes": 6.0,
        "clip": 0.0,
        "learning_rate": 1e-4,
        "log_every": 10,
    }
    disturb({40: 1000.0, 43: 1000.0, 48: 1000.0})
    train(configure("whole", **options))
    skipped = rows(tmp_path / "whole", "skipped")
    assert [(row["step"], row["reason"]) for row in skipped] == [(40, "spike"), (43, "spike"), (48, "spike")]
    assert [row.get("skipped") for row in rows(tmp_path / "whole", "train")] == [None, None, None, 1, 2]
    assert skipped[0]["records_in_all"] == len(skipped[0]["records"]) > 1
    run = tmp_path / "run"
    disturb({40: 1000.0, 43: 1000.0, 48: 1000.0})
    train(configure("run", **options))
    for name in ("config.json", "model.safetensors"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints" / "step-0000050")
    disturb({3: 1000.0})
    train(configure("run", resume=True, **options))
    assert untimed(run / "metrics.jsonl") == untimed(tmp_path / "whole" / "metrics.jsonl")
    assert (run / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_too_many_in_a_row_end_the_run(configure, tmp_path, disturb):
    disturb(dict.fromkeys((2, 3, 5, 6, 7, 8), math.nan))
    with pytest.raises(Diverged, match=r"step 8: .*gradient norm nan; all Q-values are finite.*4 steps in a row were"):
        train(configure(max_skipped=4))
    assert [row["step"] for row in rows(tmp_path / "run", "skipped")] == [2, 3, 5, 6, 7, 8]


def test_records_are_excluded(configure, tmp_path):
    whole = prepare(configure(eval_fraction=0))
    names = [whole.training.dataset.name(i) for i in whole.training.indices]
    file = tmp_path / "exclude.txt"
    file.write_text(f"\n{names[3]}\n{names[7]}  \n")
    config = configure(eval_fraction=0, exclude=str(file), save_every=5, max_steps=6)
    run = prepare(config)
    assert [run.training.dataset.name(i) for i in run.training.indices] == [
        name for name in names if name not in (names[3], names[7])
    ]
    assert f"2 trajectories left out: {file} names them" in run.notes
    train(config)
    (tmp_path / "run" / "config.json").unlink()
    file.write_text(f"{names[3]}\n{names[8]}\n")  # as many, but others
    with pytest.raises(PQMError, match="the run was started with other data: excluded"):
        train(configure(eval_fraction=0, exclude=str(file), save_every=5, max_steps=6, resume=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no id; give a file with one record id a line"),
        (b"\xff\xfe\n", r"cannot be read \(not a text file in UTF-8\)"),
        (b"nobody\nr1\n", "no record of the training data has the id nobody; take it out"),
        (None, r"cannot be read \(No such file or directory\)"),
    ],
)
def test_a_bad_list_of_excluded_records(configure, tmp_path, content, message):
    file = tmp_path / "exclude.txt"
    if content is not None:
        Path(file).write_bytes(content)
    with pytest.raises(PQMError, match=f"exclude: {file}: {message}"):
        prepare(configure(exclude=str(file)))


def test_random_numbers_follow_from_the_step(configure, tmp_path, monkeypatch):
    """Dropout is the same in a run that is resumed."""
    drawn = []

    def draw(*given, whole=loop.train_step, **named):
        drawn.append(torch.rand(()).item())
        return whole(*given, **named)

    monkeypatch.setattr(loop, "train_step", draw)
    train(configure(save_every=5, keep_checkpoints=3))
    assert len(set(drawn)) == 12
    (tmp_path / "run" / "config.json").unlink()
    for number in (10, 12):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{number:07d}", ignore_errors=True)
    whole = drawn.copy()
    drawn.clear()
    train(configure(save_every=5, keep_checkpoints=3, resume=True))
    assert drawn == whole[5:]
