"""Trains one head on the states of one layer: gather, norm, head and loss in the fused op are the whole step."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pqm_kernels import LOSSES, StepLoss, step_loss
from pqm_kernels.losses import default_normalizer
from torch import nn

from pqm_fast.evaluate.step_metrics import step_metrics
from pqm_fast.evaluate.step_thresholds import calibrated_metrics, cross_thresholds
from pqm_fast.probe.heads import Head, HeadSpec
from pqm_fast.probe.layout import HeadBatch, Layout
from pqm_fast.probe.norm import Norm, normed

ROWS_AT_ONCE = 8192  # whose mean and variance are computed together
SMALLEST_DEVIATION = 1e-4  # of a feature, relative to the largest: a feature that never changes is not blown up


@dataclass(frozen=True)
class Scale:
    """The mean [D] and the inverse standard deviation [D] of the normed states that a head is trained on."""

    mean: torch.Tensor
    inverse: torch.Tensor


@dataclass(frozen=True)
class HeadOptions:
    """What all heads of a run share."""

    norm: Norm
    temperature: float
    noise: tuple[float, float]
    epochs: int
    patience: int
    weight_decay: float


def scale_of(states: torch.Tensor, norm: Norm) -> Scale:
    """Mean and spread of the normed states; `states` [R, D] on the device."""
    total = torch.zeros(states.shape[1], dtype=torch.float64, device=states.device)
    squares = torch.zeros_like(total)
    for part in states.split(ROWS_AT_ONCE):
        x = normed(part, norm)
        total += x.sum(0, dtype=torch.float64)
        squares += x.double().square().sum(0)
    mean = total / len(states)
    deviation = (squares / len(states) - mean.square()).clamp_min(0).sqrt()
    deviation = deviation.clamp_min(SMALLEST_DEVIATION * float(deviation.max()) or 1.0)
    return Scale(mean.float(), (1 / deviation).float())


class ScaledHead(nn.Module):
    """A linear head for states of mean 0 and variance 1. It starts at 0, so that every step has the Q-value 0."""

    def __init__(self, scale: Scale):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.zeros_like(scale.mean))
        self.bias = nn.Parameter(torch.zeros(1, device=scale.mean.device))

    def plain(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(weight [D], bias [1]) of the same head for the normed states themselves."""
        weight = self.weight * self.scale.inverse
        return weight, self.bias - weight @ self.scale.mean


def train_head(
    spec: HeadSpec,
    training: tuple[Layout, torch.Tensor],
    held_out: tuple[Layout, torch.Tensor],
    questions: np.ndarray,
    scale: Scale,
    options: HeadOptions,
) -> Head:
    """Trains a head until its held-out loss stops falling.

    `training` and `held_out` are layouts with their states [R, D] on the device; `questions` has the question number of
    each trajectory of the held-out data set.
    """
    started = time.perf_counter()
    head = ScaledHead(scale)
    optimizer = make_optimizer(head, spec, options)
    layout, states = training
    random = np.random.default_rng([spec.seed, 4])
    best = _Epoch(0, float("inf"), np.zeros(len(scale.mean), dtype=np.float32), 0.0, [])
    curve: list[list[float]] = []
    for epoch in range(1, options.epochs + 1):
        losses = []
        for i in random.permutation(len(layout.batches)):
            batch = layout.batches[i]
            losses.append(take_step(head, optimizer, batch, states[batch.rows], spec, options))
        held_out_loss, scores = _held_out(head, *held_out, spec, options)
        curve.append([torch.stack(losses).mean().item(), held_out_loss])
        if held_out_loss < best.loss:
            weight, bias = (tensor.detach().cpu().numpy().copy() for tensor in head.plain())
            best = _Epoch(epoch, held_out_loss, weight, float(bias[0]), scores)
        elif epoch - best.number >= options.patience or not np.isfinite(held_out_loss):
            break
    figures = {"loss": best.loss, **_metrics(held_out[0], best.scores, questions)} if best.number else {}
    seconds = time.perf_counter() - started
    return Head(spec, best.weight, best.bias, len(curve), best.number, curve, figures, seconds)


def make_optimizer(head: ScaledHead, spec: HeadSpec, options: HeadOptions) -> torch.optim.Optimizer:
    """AdamW, which decays the weight alone."""
    groups: list[dict[str, Any]] = [{"params": [head.weight]}, {"params": [head.bias], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=spec.learning_rate, weight_decay=options.weight_decay, fused=True)


def take_step(
    head: ScaledHead,
    optimizer: torch.optim.Optimizer,
    batch: HeadBatch,
    states: torch.Tensor,
    spec: HeadSpec,
    options: HeadOptions,
) -> torch.Tensor:
    """One optimizer step on a batch with its states [R, D] on the device. Returns its loss, detached; nothing waits for
    the device."""
    loss = _loss(head, batch, states, spec, options).loss
    optimizer.zero_grad(set_to_none=False)
    loss.backward()
    optimizer.step()
    return loss.detach()


@dataclass(frozen=True)
class _Epoch:
    """A head after a pass over the data, with its held-out loss and scores; number 0: before the first."""

    number: int
    loss: float
    weight: np.ndarray
    bias: float
    scores: list[torch.Tensor]


def _loss(
    head: ScaledHead, batch: HeadBatch, states: torch.Tensor, spec: HeadSpec, options: HeadOptions, **kwargs: Any
) -> StepLoss:
    weight, bias = head.plain()
    loss, compare = spec.combination
    norm_weight, norm_eps = options.norm or (None, 1e-6)
    of_questions: dict[str, Any] = {}
    if compare is not None or LOSSES[loss].unit == "question":
        of_questions = {name: getattr(batch, name) for name in ("cu_groups", "siblings", "outcomes")}
    return step_loss(
        states,
        batch.step_index,
        batch.labels.nan_to_num(0.0) if LOSSES[loss].uses_outcomes else batch.labels,
        batch.cu_steps,
        weight,
        bias,
        loss=loss,
        zeta=4.0 if spec.zeta is None else spec.zeta,
        compare=compare,
        compare_weight=1.0 if spec.compare_weight is None else spec.compare_weight,
        temperature=options.temperature,
        noise=options.noise,
        norm_weight=norm_weight,
        norm_eps=norm_eps,
        steps_by_row=batch.steps_by_row,
        **of_questions,
        **kwargs,
    )


@torch.no_grad()
def _held_out(
    head: ScaledHead, layout: Layout, states: torch.Tensor, spec: HeadSpec, options: HeadOptions
) -> tuple[float, list[torch.Tensor]]:
    """The held-out loss, normalised over all of it, and the scores [S] of each batch on the device."""
    outputs = [_loss(head, b, states[b.rows], spec, options, normalizer=1.0) for b in layout.batches]
    steps = sum(len(b.labels) for b in layout.batches)
    trajectories = sum(len(b.members) for b in layout.batches)
    total = torch.stack([out.loss for out in outputs]).sum().item()
    return total / default_normalizer(spec.combination.loss, steps, trajectories), [out.q for out in outputs]


def _metrics(layout: Layout, scores: list[torch.Tensor], question: np.ndarray) -> dict[str, Any]:
    """Step metrics at thresholds from other questions, as a training reports them."""
    by_trajectory: list[Any] = []
    labels: list[Any] = []
    questions: list[str] = []
    for batch, q in zip(layout.batches, scores, strict=True):
        boundaries = batch.cu_steps[1:-1].tolist()
        by_trajectory += np.split(q.cpu().numpy(), boundaries)
        labels += np.split(batch.labels.cpu().numpy(), boundaries)
        questions += [str(question[i]) for i in batch.members]
    thresholds = cross_thresholds(by_trajectory, labels, questions)
    return {**step_metrics(by_trajectory, labels), **calibrated_metrics(by_trajectory, labels, thresholds)}
