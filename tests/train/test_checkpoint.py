"""The files of checkpoints, and which of them are kept."""

import math
import time
from dataclasses import replace

import pytest
import torch

from pqm_fast.errors import Diverged, PQMError
from pqm_fast.ranks.group import ALONE
from pqm_fast.train import checkpoint, loop
from pqm_fast.train.checkpoint import CheckpointWriter
from pqm_fast.train.guard import StepGuard
from pqm_fast.train.loop import train
from pqm_fast.train.optim import make_optimizer
from pqm_fast.train.run import prepare
from pqm_fast.train.run_files import complete_checkpoints, pointed_at
from pqm_fast.train.training_state import TrainingState


def test_the_writing_thread_leaves_the_gpu_alone(configure, tmp_path, monkeypatch):
    """It would wait for what training has queued there. Without a GPU, asking for its stream raises an error."""
    run = prepare(configure())
    training = TrainingState(run.model, make_optimizer(run.own, run.config), run.own, StepGuard(0.0, "cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    writer = CheckpointWriter(tmp_path / "checkpoints", ALONE, 1, ahead=True)
    writer.save(training, {"step": 1})
    writer.wait()
    assert len(complete_checkpoints(tmp_path / "checkpoints")) == 1


@pytest.mark.parametrize(
    ("losses", "best", "kept"),
    [
        ({1: 0.5, 2: math.nan, 3: 0.9}, 1, {1, 3}),
        ({1: 0.5, 2: 0.4}, 2, {2, 3}),
        ({3: 0.4, 7: 0.1}, 3, {3}),  # no checkpoint was saved after step 7
        ({2: math.nan, 3: math.inf}, None, {3}),
        ({}, None, {3}),
    ],
)
def test_the_best_and_the_newest_stay(tmp_path, losses, best, kept):
    for step in (1, 2, 3):
        (tmp_path / f"step-{step:07d}").mkdir()
    CheckpointWriter(tmp_path, ALONE, 1, ahead=False, held_out=lambda: losses).point()
    assert {int(path.name[-1]) for path in complete_checkpoints(tmp_path)} == kept
    assert (tmp_path / "latest").read_text() == "step-0000003\n"
    assert pointed_at(tmp_path, "best") == (None if best is None else tmp_path / f"step-{best:07d}")


def test_what_is_being_written_is_kept_when_the_run_fails(configure, tmp_path, monkeypatch):
    """A checkpoint from before an error, written while training goes on."""

    def slow(*given, whole=checkpoint.write_list):
        time.sleep(0.2)
        whole(*given)

    def ahead(*given, ahead, **named):
        return CheckpointWriter(*given, ahead=True, **named)

    def failing(*given, whole=loop.train_step, **named):
        if (tmp_path / "run" / "checkpoints").exists():
            raise Diverged("no more")
        return whole(*given, **named)

    monkeypatch.setattr(checkpoint, "write_list", slow)
    monkeypatch.setattr(loop, "CheckpointWriter", ahead)
    monkeypatch.setattr(loop, "train_step", failing)
    with pytest.raises(Diverged, match="no more"):
        train(configure(save_every=2))
    assert [path.name for path in complete_checkpoints(tmp_path / "run" / "checkpoints")] == ["step-0000002"]


def test_only_the_torchrun_that_started_a_run_resumes_it_unasked(configure, tmp_path, monkeypatch):
    first, other = (replace(ALONE, launcher=f"torchrun {number}") for number in (1, 2))
    options = {"eval_fraction": 0.2, "save_every": 2, "max_steps": 3}
    metrics = train(configure(**options), first)
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(PQMError, match="already holds a run"):
        train(configure(**(options | {"max_steps": 5})), other)
    assert train(configure(**options), first) == metrics  # a rank was lost after everything was done
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    with pytest.raises(PQMError, match="the run is complete"):
        train(configure(resume=True, **options), other)
