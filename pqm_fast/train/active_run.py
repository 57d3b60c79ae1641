"""A run that is under way: evaluating, saving and stopping it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pqm_fast.common.signals import Stopped, StopRequest
from pqm_fast.errors import Diverged
from pqm_fast.model.device import dtype_name
from pqm_fast.train.checkpoint import CheckpointWriter
from pqm_fast.train.clock import Clock
from pqm_fast.train.evaluation import evaluate, evaluated
from pqm_fast.train.finite import first_not_finite
from pqm_fast.train.folder import RunFolder
from pqm_fast.train.log import RunLog
from pqm_fast.train.resume import how_to_resume
from pqm_fast.train.run import Run
from pqm_fast.train.silent_log import SilentLog
from pqm_fast.train.step_report import StepReporter
from pqm_fast.train.training_state import TrainingState


@dataclass(frozen=True)
class ActiveRun:
    """A run with what training changes, and the places that it reports to. All ranks call its methods."""

    run: Run
    training: TrainingState
    folder: RunFolder
    checkpoints: CheckpointWriter
    log: RunLog | SilentLog
    clock: Clock
    reporter: StepReporter
    stop: StopRequest
    """True once a signal has asked this rank to end."""

    def evaluate(self, step: int, limit: int | None) -> dict[str, Any]:
        """Evaluates (at most `limit` trajectories of) the held-out data after `step`, and logs the figures. Returns
        them, or {} if a signal came."""
        count = len(evaluated(self.run, self.run.held_out, limit)) // self.run.ranks.world
        with self.log.evaluating(count) as bar, self.clock.evaluating(step):
            metrics = evaluate(self.run, self.run.held_out, limit, stop=self.stop, bar=bar)
        if metrics:
            self.log.write("eval", step, metrics)
        return metrics

    def save(self, step: int) -> None:
        """Writes a resumable checkpoint. Raises Diverged instead of saving a number that is not finite."""
        self.check_finite(step, self.training.parts())
        state = {
            "step": step,
            "ranks": self.run.ranks.world,
            "dtype": dtype_name(self.run.model.classifier.dtype),
            "options": self.run.config.to_store(),
            "recipe": asdict(self.run.recipe),
            "left_out": self.reporter.to_store(),
            **self.run.identity,
        }
        with self.folder.writing("checkpoints"):
            self.checkpoints.save(self.training, state)

    def saved(self) -> None:
        """Waits until what was saved is on the disk, and names the best checkpoint."""
        with self.folder.writing("checkpoints"):
            self.checkpoints.wait()
            if self.run.ranks.first:
                self.checkpoints.point()

    def check_finite(self, step: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Raises Diverged if a number in `tensors` (names and tensors) of any rank is not finite after `step`."""
        found = self.run.ranks.gather(first_not_finite(tensors))
        if name := next((name for name in found if name is not None), None):
            raise Diverged(
                f"{self.run.config.out}: after step {step:,}, {name} is not finite, so nothing was saved; check the "
                "weights that the run started from, or start again with a lower --learning-rate. What was saved before "
                "is unchanged"
            )

    def stopped(self) -> Stopped:
        """The exception to raise once everything is saved after a signal."""
        # a rank that no signal has reached yet leaves as the others do
        number = max(self.run.ranks.gather(self.stop.number))
        return Stopped(number, how_to_resume(self.run.config, self.run.ranks))
