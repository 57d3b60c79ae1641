"""Measures held-out loss and step metrics of a model during training."""

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
from pqm_fast.train.run import Run
from pqm_fast.train.split import Split
from pqm_fast.train.step import Objective, Planned


def planned_evaluations(run: Run) -> dict[int, int]:
    """Maps the step that each evaluation follows to its number of tokens. The one at the end takes all trajectories."""
    if not len(run.held_out):
        return {}
    every, limit = run.config.eval_every, run.config.eval_limit
    lengths = run.held_out.dataset.lengths
    during = range(every, run.total_steps, every) if every else ()
    tokens = int(lengths[evaluated(run, run.held_out, limit)].sum())
    return dict.fromkeys(during, tokens) | {run.total_steps: int(lengths[run.held_out.indices].sum())}


@torch.no_grad()
def evaluate(
    run: Run, split: Split, limit: int | None = None, *, stop: StopRequest | None = None, bar: tqdm | None = None
) -> dict[str, Any]:
    """Loss and step metrics over (at most `limit` trajectories of) a split, packed as in training. {} if the split is
    empty, or as soon as `stop` is true. `bar` counts trajectories."""
    indices = evaluated(run, split, limit)
    if not len(indices):
        return {}
    run.model.eval()
    budget = run.order.sizes.micro_batch_tokens
    micro_batches = [[members] for members in split.units(indices, budget).batches(budget, shuffle=False)]
    batches, losses, scores = [], [], []
    with closing(load_batches(run, split, micro_batches)) as steps:
        for [(batch, plan)] in steps:
            if stop:
                return {}
            out = run.objective(run.model, batch, plan, 1.0)
            batches.append(batch)
            losses.append(out.loss)
            scores.append(out.q)
            if bar is not None:
                bar.update(batch.num_trajectories)
    total = sum(float(loss) for loss in losses)
    per_trajectory, labels = _per_trajectory(batches, scores)
    questions = [str(split.dataset.question[i]) for batch in batches for i in batch.members]
    calibrated = calibrated_metrics(per_trajectory, labels, cross_thresholds(per_trajectory, labels, questions))
    return {"loss": total / run.objective.normalizer(batches), **step_metrics(per_trajectory, labels), **calibrated}


def step_figures(objective: Objective, batches: list[PackedBatch], scores: list[torch.Tensor]) -> dict[str, Any]:
    """The metrics of one optimizer step, from the Q-values [S] of each of its micro-batches."""
    per_trajectory, labels = _per_trajectory(batches, scores)
    metrics = step_metrics(per_trajectory, labels)
    names = ("step_accuracy", "accuracy_on_correct", "accuracy_on_wrong", "pair_accuracy")
    figures = {name: metrics[name] for name in names}
    if LOSSES[objective.loss].has_flat_floor and objective.compare is None:
        figures["flat_floor"] = flat_floor(labels)
    return figures


def load_batches(run: Run, split: Split, steps: Iterable[list[np.ndarray]]) -> Generator[list[Planned], None, None]:
    """The micro-batches of each optimizer step, packed and planned ahead."""
    workers = run.config.loader_workers
    return load_steps(
        steps,
        partial(split.pack, pad_to=run.pad_to),
        run.model.planner(),
        workers=default_workers(run.device) if workers == "auto" else workers,
        pin=run.device.type == "cuda",
    )


def evaluated(run: Run, split: Split, limit: int | None) -> np.ndarray:
    """The trajectories [N] of `split` that are evaluated: all, or the same random `limit` of them every time.

    If the loss compares the solutions of a question, whole questions are taken: at least one, and not more than fit
    `limit`.
    """
    indices = split.indices
    if limit is None or len(indices) <= limit:
        return indices
    random = np.random.default_rng([run.config.seed, 2])
    if not split.whole_questions:
        return np.sort(random.permutation(indices)[:limit])
    unique, number, sizes = np.unique(split.dataset.question[indices], return_inverse=True, return_counts=True)
    order = random.permutation(len(unique))
    count = max(1, int(np.searchsorted(np.cumsum(sizes[order]), limit, side="right")))
    return indices[np.isin(number, order[:count])]


def _per_trajectory(batches: list[PackedBatch], scores: list[torch.Tensor]) -> tuple[list[Any], list[Any]]:
    """Scores and labels of each trajectory, from the scores [S] of each batch."""
    per_trajectory: list[Any] = []
    labels: list[Any] = []
    for batch, q in zip(batches, scores, strict=True):
        boundaries = batch.cu_steps[1:-1].tolist()
        per_trajectory += np.split(q.cpu().numpy(), boundaries)
        labels += np.split(batch.labels.numpy(), boundaries)
    return per_trajectory, labels
