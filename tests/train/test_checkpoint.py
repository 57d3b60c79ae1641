"""The files of checkpoints."""

import torch

from pqm_fast.ranks.group import ALONE
from pqm_fast.train.checkpoint import CheckpointWriter, complete_checkpoints
from pqm_fast.train.guard import StepGuard
from pqm_fast.train.optim import make_optimizer
from pqm_fast.train.run import prepare
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
