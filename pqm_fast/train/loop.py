"""The training loop. Data comes in as packed batches, the loss is normalised over the whole optimizer step."""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from pqm_fast.common.files import write_json
from pqm_fast.common.lock import locked
from pqm_fast.common.signals import Stopped, StopRequest, stop_requested
from pqm_fast.data.pack import PackedBatch
from pqm_fast.errors import Diverged, PQMError
from pqm_fast.model.device import dtype_name
from pqm_fast.train.checkpoint import final_weights, save_checkpoint
from pqm_fast.train.clock import Clock
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.evaluation import evaluate, loaded, planned_evaluations, step_figures
from pqm_fast.train.finite import not_finite, state_of
from pqm_fast.train.folder import NotWritten, RunFolder
from pqm_fast.train.identity import begin, identify
from pqm_fast.train.log import RunLog, draw_curve
from pqm_fast.train.optim import learning_rate, make_optimizer, set_learning_rate
from pqm_fast.train.resume import how_to_resume
from pqm_fast.train.setup import Run, optimizer_steps, prepare, write_config
from pqm_fast.train.step import Objective, Pending, train_step


def train(config: TrainConfig) -> dict[str, Any]:
    """Runs a whole training and returns the final held-out metrics; config.folder then is a checkpoint.

    SIGTERM, SIGINT or SIGUSR1 ends it after the step that it is at, with a checkpoint; a second one ends it at once.

    Raises:
        PQMError: input that cannot be used, a loss or a weight that is no longer finite, a file that cannot be written.
        Stopped: a signal came; its text says what is kept and how to go on.
    """
    with locked(config.folder, "train", folder=True):
        run = prepare(config)
        optimizer = make_optimizer(run.model, config)
        start = begin(run, optimizer)
        try:
            folder = RunFolder(config.folder)
            with folder.writing("config.yaml"):
                write_config(config)
            with stop_requested() as stop, closing(RunLog(folder, run.total_steps, start, config.progress)) as log:
                log.say(_describe(run))
                work = _Work(run, optimizer, folder, log, Clock(run.total_steps, planned_evaluations(run)), stop)
                _loop(work, start)
                return _conclude(work)
        except NotWritten as error:
            raise PQMError(f"{error}. {how_to_resume(config)}") from error


@dataclass(frozen=True)
class _Work:
    """What a run is done with."""

    run: Run
    optimizer: torch.optim.Optimizer
    folder: RunFolder
    log: RunLog
    clock: Clock
    stop: StopRequest

    def evaluate(self, step: int, limit: int | None) -> dict[str, Any]:
        """The figures after a step, which are logged; {} if a signal came."""
        count = min(len(self.run.held_out), limit or len(self.run.held_out))
        with self.log.evaluating(count) as bar, self.clock.evaluating(step):
            metrics = evaluate(self.run, self.run.held_out, limit, stop=self.stop, bar=bar)
        if metrics:
            self.log.write("eval", step, metrics)
        return metrics

    def save(self, step: int) -> None:
        """A resumable checkpoint. Raises Diverged instead of saving what is not finite."""
        self.check(step, state_of(self.run.model, self.optimizer))
        state = {
            "step": step,
            "dtype": dtype_name(self.run.model.classifier.dtype),
            "options": self.run.config.to_store(),
            **identify(self.run),
        }
        with self.folder.writing("checkpoints") as path:
            save_checkpoint(path, self.run.model, self.optimizer, state, self.run.config.keep_checkpoints)

    def check(self, step: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        if (bad := not_finite(tensors)) is not None:
            raise Diverged(
                f"{self.run.config.out}: after step {step:,}, {bad} is not finite, so nothing was saved; look at the "
                "weights that it began with, or start again with a lower --learning-rate. What was saved before is as "
                "it was"
            )

    def stopped(self) -> Stopped:
        return self.stop.stopped(how_to_resume(self.run.config))


def _loop(work: _Work, start: int) -> None:
    run, config, log, clock = work.run, work.run.config, work.log, work.clock
    objective = Objective(config.loss, config.zeta, config.clip)
    launched: _Launched | None = None  # the step that the device is at while the next one is prepared
    if start in clock.evaluations and start not in log.evaluated and start < run.total_steps:
        work.evaluate(start, config.eval_limit)  # the run was stopped in it
    with closing(loaded(run, run.training, optimizer_steps(run, start))) as steps:
        for step, batches in enumerate(steps, start + 1):
            rate = learning_rate(step - 1, run.total_steps, config)
            set_learning_rate(work.optimizer, rate)
            pending = train_step(run.model, work.optimizer, batches, objective)
            if launched is not None:
                _finish(run, log, clock, launched)
            launched = _Launched(step, rate, [batch for batch, _ in batches], pending)
            last = step == run.total_steps
            evaluates = step in clock.evaluations and not last
            saves = config.save_every and (last or step % config.save_every == 0)
            if not (evaluates or saves or last or work.stop):
                continue
            _finish(run, log, clock, launched)  # nothing is saved or scored with weights that are not finite
            launched = None
            if evaluates:
                work.evaluate(step, config.eval_limit)
            if saves or work.stop:
                with clock.paused():
                    work.save(step)
                if work.stop:
                    raise work.stopped()


def _conclude(work: _Work) -> dict[str, Any]:
    """The checkpoint for use, its evaluation and the picture."""
    run, config = work.run, work.run.config
    dtype = getattr(torch, config.save_dtype)
    weights = final_weights(run.model, work.optimizer, dtype)
    work.check(run.total_steps, weights.items())
    with work.folder.writing("model.safetensors"):  # first what the time went into
        run.model.save(config.folder, run.tokenizer, run.recipe, dtype, weights)
    metrics: dict[str, Any] = {}
    if len(run.held_out):
        metrics = work.evaluate(run.total_steps, None)
        if not metrics:  # a signal came
            work.save(run.total_steps)
            raise work.stopped()
        with work.folder.writing("metrics.json") as path:
            write_json(path, metrics)
    with work.folder.writing("training.png"):
        draw_curve(config.folder)
    return metrics


@dataclass(frozen=True)
class _Launched:
    """An optimizer step that was handed to the device."""

    step: int
    learning_rate: float
    batches: list[PackedBatch]
    pending: Pending


def _finish(run: Run, log: RunLog, clock: Clock, launched: _Launched) -> None:
    """Waits for a step and tells what it found. Raises PQMError if that is not finite."""
    config, step = run.config, launched.step
    found = launched.pending.wait()
    if not found.finite:
        raise _not_finite(run, launched)
    log.advance()
    clock.count(launched.batches)
    if step % config.log_every == 0 or step == run.total_steps:
        figures: dict[str, Any] = {
            "loss": found.loss,
            "grad_norm": found.grad_norm,
            "learning_rate": launched.learning_rate,
        }
        figures |= step_figures(config.loss, launched.batches, found.scores)
        log.write("train", step, figures | clock.rates(found.finished, step, run.device))


def _not_finite(run: Run, launched: _Launched) -> Diverged:
    names, found = [], launched.pending
    for batch, q in zip(launched.batches, found.scores, strict=True):
        owner = torch.repeat_interleave(torch.arange(batch.num_trajectories), batch.cu_steps.diff())
        bad = owner[~torch.isfinite(q)].unique().tolist()
        names += [run.training.dataset.name(batch.members[b]) for b in bad]
    where = (
        f"Q-values are not finite in {len(names)} trajectories: {', '.join(names[:5])}"
        if names
        else "all Q-values are finite, the gradient is not"
    )
    return Diverged(
        f"{run.config.out}: step {launched.step}: loss {found.loss}, gradient norm {found.grad_norm}; {where}. Check "
        "these records, or start again with a lower --learning-rate"
    )


def _describe(run: Run) -> str:
    parameters = sum(p.numel() for p in run.model.parameters())
    tokens = int(run.training.dataset.lengths[run.training.indices].sum())
    lines = [
        f"{run.model.config.model_type}, {parameters:,} parameters, {run.device}; loss {run.config.loss}",
        f"{len(run.training):,} trajectories to train on ({tokens:,} tokens), {len(run.held_out):,} held out; "
        f"{run.total_steps:,} steps of {run.sizes.accumulation:,} x {run.sizes.micro_batch_tokens:,} tokens at most, "
        f"{run.sizes.recompute_layers} layers computed again in the backward pass",
        *run.notes,
    ]
    return "\n".join(lines)
