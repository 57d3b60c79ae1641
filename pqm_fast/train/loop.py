"""The training loop, on one rank or many. Data comes in as packed batches; the loss is normalised over the whole
optimizer step of all ranks."""

from collections.abc import Generator
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from itertools import tee
from typing import Any

import numpy as np
import torch

from pqm_fast.common.files import write_json
from pqm_fast.common.lock import locked
from pqm_fast.common.signals import StopRequest, stop_requested
from pqm_fast.errors import PQMError
from pqm_fast.model.device import dtype_name
from pqm_fast.publish.model_card import CARD_FILE
from pqm_fast.ranks.group import ALONE, Ranks
from pqm_fast.train.active_run import ActiveRun
from pqm_fast.train.card import write_run_card
from pqm_fast.train.checkpoint import CheckpointWriter
from pqm_fast.train.clock import Clock
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.curve import draw_curve
from pqm_fast.train.deal import dealt
from pqm_fast.train.evaluation import load_batches, planned_evaluations
from pqm_fast.train.final_weights import final_weights
from pqm_fast.train.folder import NotWritten, RunFolder
from pqm_fast.train.guard import StepGuard
from pqm_fast.train.launchers import note_launchers, started_by
from pqm_fast.train.log import RunLog
from pqm_fast.train.metrics_file import METRICS_FILE, held_out_losses
from pqm_fast.train.optim import make_optimizer, set_learning_rate
from pqm_fast.train.resume import RunComplete, how_to_resume, restore
from pqm_fast.train.run import Run, prepare
from pqm_fast.train.run_files import CONFIG_FILE
from pqm_fast.train.schedule import learning_rate
from pqm_fast.train.silent_log import SilentLog
from pqm_fast.train.step import Planned, train_step
from pqm_fast.train.step_report import LaunchedStep, StepReporter
from pqm_fast.train.stored_options import write_config
from pqm_fast.train.tracking import check_libraries
from pqm_fast.train.training_state import TrainingState


def train(config: TrainConfig, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Runs a whole training and returns the final held-out metrics. config.folder is then a checkpoint.

    SIGTERM, SIGINT or SIGUSR1 to any rank ends it after the current step, with a checkpoint; a second one ends the rank
    at once. Ranks that torchrun has started anew resume the run.

    Raises:
        PQMError: input that cannot be used, too many steps in a row whose loss or gradient is not finite, a weight that
            is not, a file that cannot be written.
        Stopped: a signal came; its text says what is kept and how to resume.
    """
    if ranks.first:
        check_libraries(config.track)
    launchers = ranks.gather(ranks.launcher)
    with locked(config.folder, "train", folder=True) if ranks.first else nullcontext():
        if restarted := ranks.from_first(lambda: started_by(config.folder, launchers)):
            config = replace(config, resume=True)
        try:
            run = prepare(config, ranks)
        except RunComplete as complete:
            if restarted:  # a rank was lost after all was done
                return complete.metrics
            raise
        guard = StepGuard(config.skip_spikes, run.device)
        training = TrainingState(run.model, make_optimizer(run.own, config), run.own, guard)
        restored = restore(run.start, training, ranks, run.total_steps)
        try:
            folder = _open_folder(config, ranks, launchers)
            ranks.say_when_lost(lambda: how_to_resume(config, ranks))
            with stop_requested() as stop, closing(_open_log(run, folder)) as log:
                log.say("\n".join([run.describe(), *restored]))
                log.begin(run)
                clock = Clock(run.total_steps, planned_evaluations(run))
                # a copy on the host lets a GPU go on at once; the CPU has nothing to gain from it
                ahead = run.device.type == "cuda"
                checkpoints = CheckpointWriter(
                    folder.path / "checkpoints",
                    ranks,
                    config.keep_checkpoints,
                    ahead=ahead,
                    held_out=partial(held_out_losses, folder.path / METRICS_FILE),
                )
                reporter = StepReporter.of(run, log, clock)
                active = ActiveRun(run, training, folder, checkpoints, log, clock, reporter, stop)
                try:
                    _take_steps(active)
                    return _finish(active)
                except PQMError:
                    checkpoints.finish()  # what is being written is from before the error
                    raise
        except NotWritten as error:
            raise PQMError(f"{error}. {how_to_resume(config, ranks)}") from error


def _open_folder(config: TrainConfig, ranks: Ranks, launchers: list[str | None]) -> RunFolder:
    """The run folder, with its options and the torchrun processes that started it. Raises PQMError if a rank does not
    see what rank 0 has written there."""
    if ranks.first:
        with RunFolder(config.folder).writing(CONFIG_FILE):
            write_config(config)
            note_launchers(config.folder, launchers)
    ranks.barrier()
    if not (config.folder / CONFIG_FILE).exists():
        raise PQMError(
            f"{config.out}: the machine of rank {ranks.rank} does not see what rank 0 has written there; choose an "
            "--out that all machines share"
        )
    return RunFolder(config.folder)


def _open_log(run: Run, folder: RunFolder) -> RunLog | SilentLog:
    config, ranks = run.config, run.ranks
    log = RunLog(folder, run.total_steps, run.start, config.progress) if ranks.first else None
    evaluated = ranks.from_first(lambda: set() if log is None else log.evaluated)
    return SilentLog(evaluated) if log is None else log


def _take_steps(active: ActiveRun) -> None:
    """Takes the optimizer steps, with the evaluations and checkpoints between them."""
    run, config, log, clock = active.run, active.run.config, active.log, active.clock
    start = run.start.step
    if start in clock.evaluations and start not in log.evaluated and start < run.total_steps:
        active.evaluate(start, config.eval_limit)  # the run was stopped during this evaluation
    launched: LaunchedStep | None = None  # the step that the device computes while the next one is prepared
    with closing(_planned_steps(run, start)) as steps:
        for step, (batches, filled, normalizer) in enumerate(steps, start + 1):
            rate = learning_rate(step - 1, run.total_steps, config)
            set_learning_rate(active.training.optimizer, rate)
            torch.manual_seed(_seed_of(config.seed, step, run.ranks.rank))
            result = train_step(
                run.model,
                active.training.optimizer,
                batches,
                run.objective,
                normalizer=normalizer,
                own=run.own,
                ranks=run.ranks,
                guard=active.training.guard,
                stop=bool(active.stop),
            )
            if launched is not None:
                active.reporter.report(launched)
            stops = _stops(active.stop, run.ranks, launched)
            launched = LaunchedStep(step, rate, [batch for batch, _ in batches[:filled]], result)

            is_last = step == run.total_steps
            evaluates = step in clock.evaluations and not is_last
            saves = config.save_every and (is_last or step % config.save_every == 0)
            if not (evaluates or saves or is_last or stops):
                continue
            active.reporter.report(launched)  # so that weights that are not finite are never saved or evaluated
            stops = stops or _stops(active.stop, run.ranks, launched)
            launched = None
            metrics = active.evaluate(step, config.eval_limit) if evaluates else None
            stops = stops or (evaluates and not metrics)
            if saves or stops:
                with clock.paused():
                    active.save(step)
                if stops or _stops(active.stop, run.ranks, None):
                    active.saved()
                    raise active.stopped()


def _planned_steps(run: Run, start: int) -> Generator[tuple[list[Planned], int, float], None, None]:
    """For each optimizer step: the micro-batches of this rank, how many of them hold trajectories (the others let it
    take part in what all ranks compute), and the normalizer of all ranks together."""
    order, training, world, rank = run.order, run.training, run.ranks.world, run.ranks.rank
    steps = order.steps(start, run.total_steps)
    plans, ahead = tee((step, dealt(step, order.units, order.work, world)[rank]) for step in steps)
    with closing(load_batches(run, training, (own for _, own in ahead))) as loaded:
        for (step, own), batches in zip(plans, loaded, strict=True):
            normalizer = run.objective.normalizer(*training.counts(np.concatenate(step)))
            yield batches, sum(len(members) > 0 for members in own), normalizer


def _stops(stop: StopRequest, ranks: Ranks, launched: LaunchedStep | None) -> bool:
    """Whether all ranks stop: what a step that is finished tells each of them. One rank need not wait for that."""
    if ranks.world == 1:
        return bool(stop)
    return launched is not None and launched.result.stop


def _seed_of(*numbers: int) -> int:
    """A seed for the random numbers of a step (dropout): a run that is resumed draws the same."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _finish(active: ActiveRun) -> dict[str, Any]:
    """Saves the finished model, evaluates it, writes its card and draws the curve. Returns the held-out metrics."""
    run, config, first = active.run, active.run.config, active.run.ranks.first
    dtype = getattr(torch, config.save_dtype)
    weights = final_weights(run.model, active.training.optimizer, run.own, dtype, run.ranks)
    active.check_finite(run.total_steps, weights.items())
    # save before evaluating, so that a failed evaluation cannot lose the weights
    if first:
        with active.folder.writing("model.safetensors"):
            run.model.save(config.folder, run.tokenizer, run.recipe, dtype, weights)
    metrics: dict[str, Any] = {}
    if len(run.held_out):
        metrics = active.evaluate(run.total_steps, limit=None)
        if not metrics:  # a signal came
            active.save(run.total_steps)
            active.saved()
            raise active.stopped()
        if first:
            with active.folder.writing("metrics.json") as path:
                write_json(path, metrics)
    active.saved()
    if first:
        with active.folder.writing(CARD_FILE):
            written = write_run_card(
                config.folder, config.folder, config, run.total_steps, dtype_name(run.model.classifier.dtype)
            )
        if not written:
            active.log.say(f"{config.folder / CARD_FILE}: was edited, so it stays as it is")
        with active.folder.writing("training.png"):
            draw_curve(config.folder)
    run.ranks.barrier()
    return metrics
