"""The training loop. Data comes in as packed batches, the loss is normalised over the whole optimizer step."""

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from pqm_kernels import LOSSES, StepLoss

from pqm_fast.data.pack import PackedBatch
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.step_metrics import flat_floor, step_metrics
from pqm_fast.files import write_json
from pqm_fast.train.checkpoint import (
    complete_checkpoints,
    interrupted_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.log import RunLog, draw_curve
from pqm_fast.train.optim import learning_rate, make_optimizer
from pqm_fast.train.setup import Run, Split, optimizer_steps, prepare, write_config


def train(config: TrainConfig) -> dict[str, Any]:
    """Runs a whole training and returns the final held-out metrics; config.folder then is a checkpoint.

    Raises PQMError for input that cannot be used, and for a loss that is no longer finite.
    """
    run = prepare(config)
    optimizer = make_optimizer(run.model, config)
    start = _resume(run, optimizer) if config.resume else 0
    write_config(config)
    log = RunLog(config.folder, run.total_steps, start, config.progress)
    try:
        log.say(_describe(run))
        _loop(run, optimizer, log, start)
        # first what the time went into
        run.model.save(config.folder, run.tokenizer, run.recipe, getattr(torch, config.save_dtype))
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
    for step, plan in enumerate(optimizer_steps(run, start), start + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step - 1, run.total_steps, config)
        batches = [run.training.pack(members, _pad_to(run)) for members in plan]
        outputs = backward(run, batches)
        loss = float(sum(out.loss for out in outputs))
        norm = float(torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.clip or math.inf))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise _not_finite(run, step, loss, norm, batches, outputs)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        log.advance()
        clock.count(batches)
        if step % config.log_every == 0 or step == run.total_steps:
            figures: dict[str, Any] = {
                "loss": loss,
                "grad_norm": norm,
                "learning_rate": optimizer.param_groups[0]["lr"],
            }
            figures |= _step_figures(config.loss, batches, outputs)
            log.write("train", step, figures | clock.rates(run.total_steps - step, run.device))
        with clock.paused():
            if config.eval_every and step % config.eval_every == 0 and step < run.total_steps and len(run.held_out):
                log.write("eval", step, evaluate(run, run.held_out, config.eval_limit))
            if config.save_every and step % config.save_every == 0:
                state = {"step": step, **_identity(run)}
                save_checkpoint(config.folder / "checkpoints", run.model, optimizer, state, config.keep_checkpoints)


def backward(run: Run, batches: list[PackedBatch]) -> list[StepLoss]:
    """Adds the gradient of one optimizer step, in as many micro-batches as given.

    Each is divided by the trajectories (or steps) of them all, so that packing and accumulation leave the gradient
    as it is.
    """
    run.model.train()
    by_steps = LOSSES[run.config.loss].normalised_by == "steps"
    total = sum(b.num_steps if by_steps else b.num_trajectories for b in batches)
    outputs = []
    for batch in batches:
        with _precision(run):
            out = run.model(
                batch,
                loss=run.config.loss,
                zeta=run.config.zeta,
                normalizer=float(max(1, total)),
            )
        out.loss.backward()
        outputs.append(StepLoss(out.loss.detach(), out.q))
    return outputs


@torch.no_grad()
def evaluate(run: Run, split: Split, limit: int | None = None) -> dict[str, Any]:
    """Loss and step metrics over (at most `limit` trajectories of) a split, packed as in training; {} if empty."""
    indices = split.indices
    if limit is not None and len(indices) > limit:
        indices = np.sort(np.random.default_rng([run.config.seed, 2]).permutation(indices)[:limit])
    if not len(indices):
        return {}
    run.model.eval()
    budget = run.config.micro_batch_tokens
    batches, outputs, total = [], [], 0.0
    for members in split.units(indices, budget).batches(budget, shuffle=False):
        batch = split.pack(members, _pad_to(run))
        with _precision(run):
            out = run.model(batch, loss=run.config.loss, zeta=run.config.zeta, normalizer=1.0)
        total += float(out.loss)
        batches.append(batch)
        outputs.append(out)
    by_steps = LOSSES[run.config.loss].normalised_by == "steps"
    count = sum(b.num_steps if by_steps else b.num_trajectories for b in batches)
    return {"loss": total / max(1, count), **step_metrics(*_per_trajectory(batches, outputs))}


def _step_figures(loss: str, batches: list[PackedBatch], outputs: list[StepLoss]) -> dict[str, Any]:
    scores, labels = _per_trajectory(batches, outputs)
    metrics = step_metrics(scores, labels)
    chosen = ("step_accuracy", "accuracy_on_correct", "accuracy_on_wrong", "pair_accuracy")
    figures = {name: metrics[name] for name in chosen}
    if loss in ("rank", "rank-first-error"):
        figures["flat_floor"] = flat_floor(labels)
    return figures


def _per_trajectory(batches: list[PackedBatch], outputs: list[StepLoss]) -> tuple[list[Any], list[Any]]:
    scores, labels = [], []
    for batch, out in zip(batches, outputs, strict=True):
        inner = batch.cu_steps[1:-1].tolist()
        scores += np.split(out.q.float().cpu().numpy(), inner)
        labels += np.split(batch.labels.numpy(), inner)
    return scores, labels


def _precision(run: Run) -> AbstractContextManager[Any]:
    """float32 weights; on a GPU the backbone computes in bfloat16 (the head and the loss are float32 always)."""
    name = run.config.dtype
    if name == "bfloat16" or (name == "auto" and run.device.type == "cuda"):
        return torch.autocast(run.device.type, dtype=torch.bfloat16)
    return nullcontext()


def _pad_to(run: Run) -> int | None:
    # fixed shapes keep a GPU's allocator and kernels steady; a CPU gains nothing from them
    return run.config.micro_batch_tokens if run.device.type == "cuda" else None


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
        "template": run.recipe.template.to_dict(),
    }


def _not_finite(
    run: Run, step: int, loss: float, norm: float, batches: list[PackedBatch], outputs: list[StepLoss]
) -> PQMError:
    names = []
    for batch, out in zip(batches, outputs, strict=True):
        owner = torch.repeat_interleave(torch.arange(batch.num_trajectories), batch.cu_steps.diff())
        bad = owner[~torch.isfinite(out.q).cpu()].unique().tolist()
        names += [run.training.dataset.name(batch.members[b]) for b in bad]
    where = (
        f"Q-values are not finite in {len(names)} trajectories: {', '.join(names[:5])}"
        if names
        else ("all Q-values are finite, the gradient is not")
    )
    return PQMError(
        f"{run.config.out}: step {step}: loss {loss}, gradient norm {norm}; {where}. Check these "
        "records, or start again with a lower --learning-rate"
    )


def _describe(run: Run) -> str:
    parameters = sum(p.numel() for p in run.model.parameters())
    tokens = int(run.training.dataset.lengths[run.training.indices].sum())
    lines = [
        f"{run.model.config.model_type}, {parameters:,} parameters, {run.device}; loss {run.config.loss}",
        f"{len(run.training):,} trajectories to train on ({tokens:,} tokens), {len(run.held_out):,} held out; "
        f"{run.total_steps:,} steps",
        *run.notes,
    ]
    return "\n".join(lines)


class _Clock:
    """Rates since they were last asked for, evaluations and checkpoints not counted.

    Tokens are those computed: one that trajectories share in a prefix tree counts once, padding not at all.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.started, self.away = time.perf_counter(), 0.0
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

    def rates(self, steps_left: int, device: torch.device) -> dict[str, float]:
        seconds = max(1e-9, time.perf_counter() - self.started - self.away)
        figures = {
            "tokens_per_second": self.tokens / seconds,
            "trajectories_per_second": self.trajectories / seconds,
            "eta_seconds": steps_left * seconds / max(1, self.steps),
        }
        if device.type == "cuda":
            figures["peak_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        self._reset()
        return figures
