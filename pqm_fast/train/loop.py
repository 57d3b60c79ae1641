"""The training loop. Data comes in as packed batches, the loss is normalised over the whole optimizer step."""

import shutil
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from pqm_kernels import LOSSES

from pqm_fast.data.loader import default_workers, load_steps
from pqm_fast.data.pack import PackedBatch
from pqm_fast.errors import Diverged, PQMError
from pqm_fast.evaluate.step_metrics import flat_floor, step_metrics
from pqm_fast.evaluate.step_thresholds import calibrated_metrics, cross_thresholds
from pqm_fast.files import write_json
from pqm_fast.lock import locked
from pqm_fast.pretrained import dtype_name
from pqm_fast.train.checkpoint import (
    complete_checkpoints,
    final_weights,
    interrupted_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.log import RunLog, draw_curve
from pqm_fast.train.optim import learning_rate, make_optimizer, set_learning_rate
from pqm_fast.train.setup import Run, Split, optimizer_steps, prepare, write_config
from pqm_fast.train.step import Objective, Pending, Planned, train_step


def train(config: TrainConfig) -> dict[str, Any]:
    """Runs a whole training and returns the final held-out metrics; config.folder then is a checkpoint.

    Raises PQMError for input that cannot be used, and for a loss that is no longer finite.
    """
    with locked(config.folder, "train", folder=True):
        return _train(config)


def _train(config: TrainConfig) -> dict[str, Any]:
    run = prepare(config)
    optimizer = make_optimizer(run.model, config)
    start = _resume(run, optimizer) if config.resume else 0
    write_config(config)
    log = RunLog(config.folder, run.total_steps, start, config.progress)
    try:
        log.say(_describe(run))
        _loop(run, optimizer, log, start)
        # first what the time went into
        dtype = getattr(torch, config.save_dtype)
        run.model.save(config.folder, run.tokenizer, run.recipe, dtype, final_weights(run.model, optimizer, dtype))
        metrics = evaluate(run, run.held_out)
        if metrics:
            log.write("eval", run.total_steps, metrics)
            write_json(config.folder / "metrics.json", metrics)
    finally:
        log.close()
    draw_curve(config.folder)
    return metrics


def _loop(run: Run, optimizer: torch.optim.Optimizer, log: RunLog, start: int) -> None:
    config, clock = run.config, _Clock()
    objective = Objective(config.loss, config.zeta, config.clip)
    launched: _Launched | None = None  # the step that the device is at while the next one is prepared
    with closing(_loaded(run, run.training, optimizer_steps(run, start))) as loaded:
        for step, batches in enumerate(loaded, start + 1):
            rate = learning_rate(step - 1, run.total_steps, config)
            set_learning_rate(optimizer, rate)
            pending = train_step(run.model, optimizer, batches, objective)
            if launched is not None:
                _finish(run, log, clock, launched)
            launched = _Launched(step, rate, [batch for batch, _ in batches], pending)
            evaluates = config.eval_every and step % config.eval_every == 0 and step < run.total_steps
            saves = config.save_every and step % config.save_every == 0
            if evaluates or saves or step == run.total_steps:
                _finish(run, log, clock, launched)  # nothing is saved or scored with weights that are not finite
                launched = None
            with clock.paused():
                if evaluates and len(run.held_out):
                    log.write("eval", step, evaluate(run, run.held_out, config.eval_limit))
                if saves:
                    state = {"step": step, "dtype": dtype_name(run.model.classifier.dtype), **_identity(run)}
                    save_checkpoint(config.folder / "checkpoints", run.model, optimizer, state, config.keep_checkpoints)


@dataclass(frozen=True)
class _Launched:
    """An optimizer step that was handed to the device."""

    step: int
    learning_rate: float
    batches: list[PackedBatch]
    pending: Pending


def _finish(run: Run, log: RunLog, clock: "_Clock", launched: _Launched) -> None:
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
        figures |= _step_figures(config.loss, launched.batches, found.scores)
        log.write("train", step, figures | clock.rates(found.finished, run.total_steps - step, run.device))


@torch.no_grad()
def evaluate(run: Run, split: Split, limit: int | None = None) -> dict[str, Any]:
    """Loss and step metrics over (at most `limit` trajectories of) a split, packed as in training; {} if empty."""
    indices = split.indices
    if limit is not None and len(indices) > limit:
        indices = np.sort(np.random.default_rng([run.config.seed, 2]).permutation(indices)[:limit])
    if not len(indices):
        return {}
    run.model.eval()
    budget = run.sizes.micro_batch_tokens
    plan = [[members] for members in split.units(indices, budget).batches(budget, shuffle=False)]
    batches, losses, scores = [], [], []
    with closing(_loaded(run, split, plan)) as loaded:
        for [(batch, packing)] in loaded:
            out = run.model(batch, packing, loss=run.config.loss, zeta=run.config.zeta, normalizer=1.0)
            batches.append(batch)
            losses.append(out.loss)
            scores.append(out.q)
    total = sum(float(loss) for loss in losses)
    by_steps = LOSSES[run.config.loss].normalised_by == "steps"
    count = sum(b.num_steps if by_steps else b.num_trajectories for b in batches)
    own, labels = _per_trajectory(batches, scores)
    questions = [str(split.dataset.question[i]) for batch in batches for i in batch.members]
    calibrated = calibrated_metrics(own, labels, cross_thresholds(own, labels, questions))
    return {"loss": total / max(1, count), **step_metrics(own, labels), **calibrated}


def _loaded(run: Run, split: Split, steps: Iterable[list[np.ndarray]]) -> Generator[list[Planned], None, None]:
    """The micro-batches of each optimizer step, packed and planned ahead."""
    workers = run.config.loader_workers
    return load_steps(
        steps,
        partial(split.pack, pad_to=run.pad_to),
        run.model.planner(prefix_tree=split.prefix_tree),
        workers=default_workers(run.device) if workers == "auto" else workers,
        pin=run.device.type == "cuda",
    )


def _step_figures(loss: str, batches: list[PackedBatch], scores: list[torch.Tensor]) -> dict[str, Any]:
    per_trajectory, labels = _per_trajectory(batches, scores)
    metrics = step_metrics(per_trajectory, labels)
    chosen = ("step_accuracy", "accuracy_on_correct", "accuracy_on_wrong", "pair_accuracy")
    figures = {name: metrics[name] for name in chosen}
    if loss in ("rank", "rank-first-error"):
        figures["flat_floor"] = flat_floor(labels)
    return figures


def _per_trajectory(batches: list[PackedBatch], scores: list[torch.Tensor]) -> tuple[list[Any], list[Any]]:
    """Scores and labels of each trajectory; `scores` has those of each batch."""
    own, labels = [], []
    for batch, q in zip(batches, scores, strict=True):
        inner = batch.cu_steps[1:-1].tolist()
        own += np.split(q.cpu().numpy(), inner)
        labels += np.split(batch.labels.numpy(), inner)
    return own, labels


def _resume(run: Run, optimizer: torch.optim.Optimizer) -> int:
    folder = run.config.folder / "checkpoints"
    for path in interrupted_checkpoints(folder):
        run.notes.append(f"{path.name} was interrupted while being written: removed")
        shutil.rmtree(path)
    found = complete_checkpoints(folder)
    if not found:
        run.notes.append("no complete checkpoint yet: starting from the first step")
        return 0
    state = load_checkpoint(found[-1], run.model, optimizer)
    if changed := [name for name, now in _identity(run).items() if state.get(name) != now]:
        values = ", ".join(f"{name} ({state.get(name)!r} then, {_identity(run)[name]!r} now)" for name in changed)
        raise PQMError(f"{found[-1]}: the run was started with other data: {values}; put it back to resume")
    run.notes.append(f"resuming from {found[-1]}")
    return state["step"]


def _identity(run: Run) -> dict[str, Any]:
    """What a continued run must find as it was, for the same steps to follow."""
    return {
        "data": run.training.dataset.digest,
        "trajectories": len(run.training),
        "total_steps": run.total_steps,
        "micro_batch_tokens": run.sizes.micro_batch_tokens,
        "accumulation": run.sizes.accumulation,
        "template": run.recipe.template.to_dict(),
    }


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


class _Clock:
    """Rates since they were last asked for, evaluations and checkpoints not counted.

    Tokens are those computed: one that trajectories share in a prefix tree counts once, padding not at all.
    """

    def __init__(self) -> None:
        self._reset(time.perf_counter())

    def _reset(self, now: float) -> None:
        self.started, self.away = now, 0.0
        self.tokens = self.trajectories = self.steps = 0

    def count(self, batches: list[PackedBatch]) -> None:
        self.tokens += sum(b.num_tokens for b in batches)
        self.trajectories += sum(b.num_trajectories for b in batches)
        self.steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        since = time.perf_counter()
        yield
        self.away += time.perf_counter() - since

    def rates(self, now: float, steps_left: int, device: torch.device) -> dict[str, float]:
        """Up to `now`, when the last step that was counted had finished; the next one may be under way."""
        seconds = max(1e-9, now - self.started - self.away)
        figures = {
            "tokens_per_second": self.tokens / seconds,
            "trajectories_per_second": self.trajectories / seconds,
            "eta_seconds": steps_left * seconds / max(1, self.steps),
        }
        if device.type == "cuda":
            figures["peak_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        self._reset(now)
        return figures
