"""The training loop. Data comes in as packed batches; the loss is normalised over the whole optimizer step."""

from contextlib import closing
from typing import Any

import torch

from pqm_fast.common.files import write_json
from pqm_fast.common.lock import locked
from pqm_fast.common.signals import stop_requested
from pqm_fast.errors import PQMError
from pqm_fast.train.active_run import ActiveRun
from pqm_fast.train.clock import Clock
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.curve import draw_curve
from pqm_fast.train.evaluation import load_batches, planned_evaluations
from pqm_fast.train.final_weights import final_weights
from pqm_fast.train.folder import NotWritten, RunFolder
from pqm_fast.train.log import RunLog
from pqm_fast.train.optim import make_optimizer, set_learning_rate
from pqm_fast.train.resume import how_to_resume, restore
from pqm_fast.train.run import prepare
from pqm_fast.train.schedule import learning_rate
from pqm_fast.train.step import train_step
from pqm_fast.train.step_report import LaunchedStep, report_step
from pqm_fast.train.stored_options import write_config
from pqm_fast.train.tracking import check_libraries


def train(config: TrainConfig) -> dict[str, Any]:
    """Runs a whole training and returns the final held-out metrics. config.folder is then a checkpoint.

    SIGTERM, SIGINT or SIGUSR1 ends it after the current step, with a checkpoint; a second one ends it at once.

    Raises:
        PQMError: input that cannot be used, a loss or a weight that is no longer finite, a file that cannot be written.
        Stopped: a signal came; its text says what is kept and how to resume.
    """
    check_libraries(config.track)
    with locked(config.folder, "train", folder=True):
        run = prepare(config)
        optimizer = make_optimizer(run.model, config)
        restored = restore(run.start, run.model, optimizer, run.total_steps)
        try:
            folder = RunFolder(config.folder)
            with folder.writing("config.yaml"):
                write_config(config)
            with stop_requested() as stop, closing(RunLog(folder, run.total_steps, run.start, config.progress)) as log:
                log.say("\n".join([run.describe(), *restored]))
                log.begin(run)
                clock = Clock(run.total_steps, planned_evaluations(run))
                active = ActiveRun(run, optimizer, folder, log, clock, stop)
                _take_steps(active)
                return _finish(active)
        except NotWritten as error:
            raise PQMError(f"{error}. {how_to_resume(config)}") from error


def _take_steps(active: ActiveRun) -> None:
    """Takes the optimizer steps, with the evaluations and checkpoints between them."""
    run, config, log, clock = active.run, active.run.config, active.log, active.clock
    start = run.start.step
    if start in clock.evaluations and start not in log.evaluated and start < run.total_steps:
        active.evaluate(start, config.eval_limit)  # the run was stopped during this evaluation
    launched: LaunchedStep | None = None  # the step that the device computes while the next one is prepared
    with closing(load_batches(run, run.training, run.order.steps(start, run.total_steps))) as steps:
        for step, batches in enumerate(steps, start + 1):
            rate = learning_rate(step - 1, run.total_steps, config)
            set_learning_rate(active.optimizer, rate)
            result = train_step(run.model, active.optimizer, batches, run.objective)
            if launched is not None:
                report_step(run, log, clock, launched)
            launched = LaunchedStep(step, rate, [batch for batch, _ in batches], result)

            is_last = step == run.total_steps
            evaluates = step in clock.evaluations and not is_last
            saves = config.save_every and (is_last or step % config.save_every == 0)
            if not (evaluates or saves or is_last or active.stop):
                continue
            report_step(run, log, clock, launched)  # so that weights that are not finite are never saved or evaluated
            launched = None
            if evaluates:
                active.evaluate(step, config.eval_limit)
            if saves or active.stop:
                with clock.paused():
                    active.save(step)
                if active.stop:
                    raise active.stopped()


def _finish(active: ActiveRun) -> dict[str, Any]:
    """Saves the finished model, evaluates it and draws the curve. Returns the held-out metrics."""
    run, config = active.run, active.run.config
    dtype = getattr(torch, config.save_dtype)
    weights = final_weights(run.model, active.optimizer, dtype)
    active.check_finite(run.total_steps, weights.items())
    # save before evaluating, so that a failed evaluation cannot lose the weights
    with active.folder.writing("model.safetensors"):
        run.model.save(config.folder, run.tokenizer, run.recipe, dtype, weights)
    metrics: dict[str, Any] = {}
    if len(run.held_out):
        metrics = active.evaluate(run.total_steps, limit=None)
        if not metrics:  # a signal came
            active.save(run.total_steps)
            raise active.stopped()
        with active.folder.writing("metrics.json") as path:
            write_json(path, metrics)
    with active.folder.writing("training.png"):
        draw_curve(config.folder)
    return metrics
