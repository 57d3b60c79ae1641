"""Measures held-out loss and step metrics of a model during training."""

from collections.abc import Generator, Iterable
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from pqm_kernels import LOSSES
from tqdm import tqdm

from pqm_fast.common.signals import StopRequest
from pqm_fast.data.loader import default_workers, load_steps
from pqm_fast.data.pack import PackedBatch
from pqm_fast.evaluate.step_metrics import flat_floor, step_metrics
from pqm_fast.evaluate.step_thresholds import calibrated_metrics, cross_thresholds
from pqm_fast.train.deal import dealt
from pqm_fast.train.run import Run
from pqm_fast.train.split import Split
from pqm_fast.train.step import Planned


def planned_evaluations(run: Run) -> dict[int, int]:
    """Maps the step that each evaluation follows to its number of tokens. The one at the end takes all trajectories."""
    if not len(run.held_out):
        return {}
    every, limit = run.config.eval_every, run.config.eval_limit
    lengths = run.held_out.dataset.lengths
    during = range(every, run.total_steps, every) if every else ()
    tokens = int(lengths[evaluated(run, run.held_out, limit)].sum())
    return dict.fromkeys(during, tokens) | {run.total_steps: int(lengths[run.held_out.indices].sum())}


class Outputs(NamedTuple):
    """What one rank has computed: scores and labels of the steps of each trajectory, and where to look them up."""

    losses: list[float]
    """Of each micro-batch, before normalisation."""
    scores: list[Any]
    labels: list[Any]
    members: list[int]
    """The number of each trajectory in its data set."""


@torch.no_grad()
def evaluate(
    run: Run, split: Split, limit: int | None = None, *, stop: StopRequest | None = None, bar: tqdm | None = None
) -> dict[str, Any]:
    """Loss and step metrics over (at most `limit` trajectories of) a split, packed as in training, on all ranks. {} if
    the split is empty, or as soon as `stop` is true on any rank. `bar` counts the trajectories of this rank."""
    indices = evaluated(run, split, limit)
    if not len(indices):
        return {}
    run.model.eval()
    budget = run.order.sizes.micro_batch_tokens
    units = split.units(indices, budget)
    all_batches = units.batches(budget, shuffle=False)
    own = dealt(all_batches, units, run.order.work, run.ranks.world)[run.ranks.rank]
    batches, losses, scores = [], [], []
    with closing(load_batches(run, split, ([members] for members in own))) as steps:
        for members, [(batch, plan)] in zip(own, steps, strict=True):
            if run.ranks.any(stop):
                return {}
            out = run.objective(run.model, batch, plan, 1.0)
            if not len(members):  # this rank only took part
                continue
            batches.append(batch)
            losses.append(out.loss)
            scores.append(out.q)
            if bar is not None:
                bar.update(batch.num_trajectories)
    parts = run.ranks.gather(_outputs(batches, losses, scores))
    return run.ranks.from_first(lambda: _metrics(run, split, indices, parts))


def _metrics(run: Run, split: Split, indices: np.ndarray, parts: list[Outputs]) -> dict[str, Any]:
    """The metrics of an evaluation from what each rank has computed."""
    loss = sum(loss for part in parts for loss in part.losses) / run.objective.normalizer(*split.counts(indices))
    scores, labels = [q for part in parts for q in part.scores], [y for part in parts for y in part.labels]
    questions = [str(split.dataset.question[i]) for part in parts for i in part.members]
    calibrated = calibrated_metrics(scores, labels, cross_thresholds(scores, labels, questions))
    return {"loss": loss, **step_metrics(scores, labels), **calibrated}


def step_figures(run: Run, batches: list[PackedBatch], scores: list[torch.Tensor]) -> dict[str, Any]:
    """The metrics of one optimizer step over all ranks, from the Q-values [S] of each micro-batch of this one."""
    parts = run.ranks.gather(_outputs(batches, [], scores))
    if not run.ranks.first:  # only rank 0 has a log
        return {}
    labels = [y for part in parts for y in part.labels]
    metrics = step_metrics([q for part in parts for q in part.scores], labels)
    names = ("step_accuracy", "accuracy_on_correct", "accuracy_on_wrong", "pair_accuracy")
    figures = {name: metrics[name] for name in names}
    if LOSSES[run.objective.loss].has_flat_floor and run.objective.compare is None:
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


def _outputs(batches: list[PackedBatch], losses: list[torch.Tensor], scores: list[torch.Tensor]) -> Outputs:
    """What this rank has computed, from the scores [S] of each of its batches."""
    by_trajectory: list[Any] = []
    labels: list[Any] = []
    for batch, q in zip(batches, scores, strict=True):
        boundaries = batch.cu_steps[1:-1].tolist()
        by_trajectory += np.split(q.cpu().numpy(), boundaries)
        labels += np.split(batch.labels.numpy(), boundaries)
    members = [number for batch in batches for number in batch.members]
    return Outputs([float(loss) for loss in losses], by_trajectory, labels, members)
