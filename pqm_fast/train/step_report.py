"""The report of an optimizer step, made once its results are on the host."""

from dataclasses import dataclass
from typing import Any

import torch

from pqm_fast.data.pack import PackedBatch
from pqm_fast.errors import Diverged
from pqm_fast.train.clock import Clock
from pqm_fast.train.evaluation import step_figures
from pqm_fast.train.log import RunLog
from pqm_fast.train.run import Run
from pqm_fast.train.step import PendingResult


@dataclass(frozen=True)
class LaunchedStep:
    """An optimizer step that was handed to the device, which may still be computing it."""

    step: int
    learning_rate: float
    batches: list[PackedBatch]
    result: PendingResult


def report_step(run: Run, log: RunLog, clock: Clock, launched: LaunchedStep) -> None:
    """Waits for a step, and logs its figures if it is due. Raises Diverged if they are not finite."""
    config, step = run.config, launched.step
    result = launched.result.wait()
    if not result.finite:
        raise _diverged(run, launched)
    log.advance()
    clock.count(launched.batches)
    if step % config.log_every == 0 or step == run.total_steps:
        figures: dict[str, Any] = {
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "learning_rate": launched.learning_rate,
        }
        figures |= step_figures(run.objective, launched.batches, result.scores)
        log.write("train", step, figures | clock.rates(result.finished, step, run.device))


def _diverged(run: Run, launched: LaunchedStep) -> Diverged:
    """Names the first trajectories whose Q-values are not finite."""
    names, result = [], launched.result
    for batch, scores in zip(launched.batches, result.scores, strict=True):
        trajectory_of_step = torch.repeat_interleave(torch.arange(batch.num_trajectories), batch.cu_steps.diff())
        affected = trajectory_of_step[~torch.isfinite(scores)].unique().tolist()
        names += [run.training.dataset.name(batch.members[i]) for i in affected]
    finding = (
        f"Q-values are not finite in {len(names)} trajectories: {', '.join(names[:5])}"
        if names
        else "all Q-values are finite, the gradient is not"
    )
    return Diverged(
        f"{run.config.out}: step {launched.step}: loss {result.loss}, gradient norm {result.grad_norm}; {finding}. "
        "Check these records, or start again with a lower --learning-rate"
    )
