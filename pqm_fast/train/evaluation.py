"""Held-out loss and step metrics of the model in training."""

from collections.abc import Generator, Iterable
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import torch
from pqm_kernels import LOSSES
from tqdm import tqdm

from pqm_fast.common.signals import StopRequest
from pqm_fast.data.loader import default_workers, load_steps
from pqm_fast.data.pack import PackedBatch
from pqm_fast.evaluate.step_metrics import flat_floor, step_metrics
from pqm_fast.evaluate.step_thresholds import calibrated_metrics, cross_thresholds
from pqm_fast.train.setup import Run, Split
from pqm_fast.train.step import Planned


def planned_evaluations(run: Run) -> dict[int, int]:
    """By the step that each evaluation follows, how many tokens it has; the one at the end takes all."""
    if not len(run.held_out):
        return {}
    every, limit = run.config.eval_every, run.config.eval_limit
    lengths = run.held_out.dataset.lengths
    during = range(every, run.total_steps, every) if every else ()
    tokens = int(lengths[_chosen(run, run.held_out, limit)].sum())
    return dict.fromkeys(during, tokens) | {run.total_steps: int(lengths[run.held_out.indices].sum())}


@torch.no_grad()
def evaluate(
    run: Run, split: Split, limit: int | None = None, *, stop: StopRequest | None = None, bar: tqdm | None = None
) -> dict[str, Any]:
    """Loss and step metrics over (at most `limit` trajectories of) a split, packed as in training; {} if empty.

    `bar` counts trajectories. Left as soon as `stop` is true: {} too.
    """
    indices = _chosen(run, split, limit)
    if not len(indices):
        return {}
    run.model.eval()
    budget = run.sizes.micro_batch_tokens
    micro_batches = [[members] for members in split.units(indices, budget).batches(budget, shuffle=False)]
    batches, losses, scores = [], [], []
    with closing(loaded(run, split, micro_batches)) as steps:
        for [(batch, plan)] in steps:
            if stop:
                return {}
            out = run.model(batch, plan, loss=run.config.loss, zeta=run.config.zeta, normalizer=1.0)
            batches.append(batch)
            losses.append(out.loss)
            scores.append(out.q)
            if bar is not None:
                bar.update(batch.num_trajectories)
    total = sum(float(loss) for loss in losses)
    by_steps = LOSSES[run.config.loss].normalised_by == "steps"
    count = sum(b.num_steps if by_steps else b.num_trajectories for b in batches)
    own, labels = _per_trajectory(batches, scores)
    questions = [str(split.dataset.question[i]) for batch in batches for i in batch.members]
    calibrated = calibrated_metrics(own, labels, cross_thresholds(own, labels, questions))
    return {"loss": total / max(1, count), **step_metrics(own, labels), **calibrated}


def step_figures(loss: str, batches: list[PackedBatch], scores: list[torch.Tensor]) -> dict[str, Any]:
    """Of one optimizer step, from the Q-values [S] of each of its micro-batches."""
    per_trajectory, labels = _per_trajectory(batches, scores)
    metrics = step_metrics(per_trajectory, labels)
    chosen = ("step_accuracy", "accuracy_on_correct", "accuracy_on_wrong", "pair_accuracy")
    figures = {name: metrics[name] for name in chosen}
    if loss in ("rank", "rank-first-error"):
        figures["flat_floor"] = flat_floor(labels)
    return figures


def loaded(run: Run, split: Split, steps: Iterable[list[np.ndarray]]) -> Generator[list[Planned], None, None]:
    """The micro-batches of each optimizer step, packed and planned ahead."""
    workers = run.config.loader_workers
    return load_steps(
        steps,
        partial(split.pack, pad_to=run.pad_to),
        run.model.planner(),
        workers=default_workers(run.device) if workers == "auto" else workers,
        pin=run.device.type == "cuda",
    )


def _chosen(run: Run, split: Split, limit: int | None) -> np.ndarray:
    indices = split.indices
    if limit is None or len(indices) <= limit:
        return indices
    return np.sort(np.random.default_rng([run.config.seed, 2]).permutation(indices)[:limit])


def _per_trajectory(batches: list[PackedBatch], scores: list[torch.Tensor]) -> tuple[list[Any], list[Any]]:
    """Scores and labels of each trajectory; `scores` has those of each batch."""
    own, labels = [], []
    for batch, q in zip(batches, scores, strict=True):
        inner = batch.cu_steps[1:-1].tolist()
        own += np.split(q.cpu().numpy(), inner)
        labels += np.split(batch.labels.numpy(), inner)
    return own, labels
