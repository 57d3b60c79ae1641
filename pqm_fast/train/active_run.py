"""A run that is under way: evaluating, saving and stopping it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from pqm_fast.common.signals import Stopped, StopRequest
from pqm_fast.errors import Diverged
from pqm_fast.model.device import dtype_name
from pqm_fast.train.checkpoint import save_checkpoint
from pqm_fast.train.clock import Clock
from pqm_fast.train.evaluation import evaluate, evaluated
from pqm_fast.train.finite import first_not_finite, training_state
from pqm_fast.train.folder import RunFolder
from pqm_fast.train.log import RunLog
from pqm_fast.train.resume import how_to_resume
from pqm_fast.train.run import Run


@dataclass(frozen=True)
class ActiveRun:
    """A run with its optimizer, and the places that it reports to."""

    run: Run
    optimizer: torch.optim.Optimizer
    folder: RunFolder
    log: RunLog
    clock: Clock
    stop: StopRequest
    """True once a signal has asked the run to end."""

    def evaluate(self, step: int, limit: int | None) -> dict[str, Any]:
        """Evaluates (at most `limit` trajectories of) the held-out data after `step`, and logs the figures. Returns
        them, or {} if a signal came."""
        count = len(evaluated(self.run, self.run.held_out, limit))
        with self.log.evaluating(count) as bar, self.clock.evaluating(step):
            metrics = evaluate(self.run, self.run.held_out, limit, stop=self.stop, bar=bar)
        if metrics:
            self.log.write("eval", step, metrics)
        return metrics

    def save(self, step: int) -> None:
        """Writes a resumable checkpoint. Raises Diverged instead of saving a number that is not finite."""
        self.check_finite(step, training_state(self.run.model, self.optimizer))
        state = {
            "step": step,
            "dtype": dtype_name(self.run.model.classifier.dtype),
            "options": self.run.config.to_store(),
            **self.run.identity,
        }
        with self.folder.writing("checkpoints") as path:
            save_checkpoint(path, self.run.model, self.optimizer, state, self.run.config.keep_checkpoints)

    def check_finite(self, step: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Raises Diverged if a number in `tensors` (names and tensors) is not finite after `step`."""
        if (name := first_not_finite(tensors)) is not None:
            raise Diverged(
                f"{self.run.config.out}: after step {step:,}, {name} is not finite, so nothing was saved; check the "
                "weights that the run started from, or start again with a lower --learning-rate. What was saved before "
                "is unchanged"
            )

    def stopped(self) -> Stopped:
        """The exception to raise once everything is saved after a signal."""
        return self.stop.stopped(how_to_resume(self.run.config))
