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
from pqm_fast.train.silent_log import SilentLog
from pqm_fast.train.step import PendingResult

LISTED = 20  # records that a row about a step that was left out names


@dataclass(frozen=True)
class LaunchedStep:
    """An optimizer step that was handed to the device, which may still be computing it."""

    step: int
    learning_rate: float
    batches: list[PackedBatch]
    """The micro-batches of this rank that hold trajectories."""
    result: PendingResult

    @property
    def scores(self) -> list[torch.Tensor]:
        """The Q-values [S] of `batches`, once the result has come."""
        return self.result.scores[: len(self.batches)]


@dataclass
class StepReporter:
    """Reports the steps of a run, in order. All ranks call it."""

    run: Run
    log: RunLog | SilentLog
    clock: Clock
    skipped: int = 0
    """How many steps were left out since the last line of metrics."""
    in_a_row: int = 0
    """How many of the last steps were left out."""

    @classmethod
    def of(cls, run: Run, log: RunLog | SilentLog, clock: Clock) -> "StepReporter":
        """One that goes on from the checkpoint that the run starts from."""
        checkpoint = run.start.checkpoint
        return cls(run, log, clock, **({} if checkpoint is None else checkpoint.state["left_out"]))

    def to_store(self) -> dict[str, int]:
        """What a checkpoint must hold of it."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def report(self, launched: LaunchedStep) -> None:
        """Waits for a step, and logs its figures if it is due. Raises Diverged after too many steps in a row that were
        left out."""
        config, step = self.run.config, launched.step
        result = launched.result.wait()
        self.log.advance()
        self.clock.count(launched.batches)
        self.in_a_row = self.in_a_row + 1 if result.left_out else 0
        if result.left_out:
            self._left_out(launched)
        if step % config.log_every == 0 or step == self.run.total_steps:
            figures: dict[str, Any] = {
                "loss": result.loss if result.finite else None,
                "grad_norm": result.grad_norm if result.finite else None,
                "learning_rate": launched.learning_rate,
            }
            if self.skipped:
                figures["skipped"] = self.skipped
            if result.finite:
                figures |= step_figures(self.run, launched.batches, launched.scores)
            figures |= self.clock.rates(result.finished, step, self.run.device, self.run.ranks)
            self.log.write("train", step, figures)
            self.skipped = 0

    def _left_out(self, launched: LaunchedStep) -> None:
        result = launched.result
        reason = "spike" if result.finite else "not finite"
        self.skipped += 1
        affected = [name for names in self.run.ranks.gather(self._records(launched)) for name in names]
        figures = {"loss": str(result.loss), "grad_norm": str(result.grad_norm)}
        records = {"records": affected[:LISTED], "records_in_all": len(affected)}
        self.log.write("skipped", launched.step, {"reason": reason, **figures, **records})
        if self.in_a_row < self.run.config.max_skipped:
            return
        if result.finite:
            finding = f"the gradient norm is a spike; in the step are {len(affected)} records"
        elif affected:
            finding = f"Q-values are not finite in {len(affected)} trajectories"
        else:
            finding = "all Q-values are finite, the gradient is not"
        listed = f": {', '.join(affected[:5])}" if affected else ""
        raise Diverged(
            f"{self.run.config.out}: step {launched.step}: loss {result.loss}, gradient norm {result.grad_norm}; "
            f"{finding}{listed}. {self.in_a_row} steps in a row were left out. Check these records (--exclude leaves "
            "them out), or start again with a lower --learning-rate"
        )

    def _records(self, launched: LaunchedStep) -> list[str]:
        """The records of this rank that a step was left out for: those with Q-values that are not finite; after a
        spike, all."""
        name = self.run.training.dataset.name
        if launched.result.finite:
            return [name(number) for batch in launched.batches for number in batch.members]
        names = []
        for batch, scores in zip(launched.batches, launched.scores, strict=True):
            trajectory_of_step = torch.repeat_interleave(torch.arange(batch.num_trajectories), batch.cu_steps.diff())
            affected = trajectory_of_step[~torch.isfinite(scores)].unique().tolist()
            names += [name(batch.members[i]) for i in affected]
        return names
