"""One optimizer step: forward and backward of its micro-batches, clipping and the update.

Nothing here waits for the device: the results of a step are read later, while the next step runs.
"""

import math
import time
from collections.abc import Sequence

import torch
from pqm_kernels import StepLoss

from pqm_fast.data.pack import PackedBatch
from pqm_fast.model.attention import BatchPlan
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.ranks.group import ALONE, Ranks
from pqm_fast.train.guard import StepGuard
from pqm_fast.train.objective import Objective
from pqm_fast.train.optim import update
from pqm_fast.train.sharding import Part, parts, replicated

Planned = tuple[PackedBatch, BatchPlan | None]
"""A micro-batch on the host, and its attention plan if that was made ahead."""


class PendingResult:
    """The results of a step, on their way to the host.

    After `wait`, these attributes may be read: `loss` and `grad_norm` (before clipping), floats; `left_out` and `stop`,
    booleans: the weights were not changed, and a rank was asked to stop; `scores`, the Q-values [S] of each micro-batch
    of this rank, float32 on the host; `finished`, when the step ended, by `time.perf_counter`.
    """

    def __init__(
        self,
        loss: torch.Tensor,
        grad_norm: torch.Tensor,
        scores: list[torch.Tensor],
        left_out: torch.Tensor,
        stop: torch.Tensor,
    ):
        # from a GPU this copies into pinned memory, so the copy is queued behind the step and nothing waits
        self._scalars = torch.stack([loss, grad_norm, left_out, stop]).to("cpu", non_blocking=True)
        self.scores = [q.to("cpu", non_blocking=True) for q in scores]
        self.finished = time.perf_counter()  # on a CPU, where nothing is queued
        self._copied = torch.cuda.Event() if loss.is_cuda else None
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(loss.device))

    def wait(self) -> "PendingResult":
        """Waits until everything is on the host."""
        if self._copied is not None:
            self._copied.synchronize()
            self.finished = time.perf_counter()
        self.loss, self.grad_norm, left_out, stop = self._scalars.tolist()
        self.left_out, self.stop = bool(left_out), bool(stop)
        return self

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def train_step(
    model: StepQModel,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Planned],
    objective: Objective,
    *,
    normalizer: float | None = None,
    own: Sequence[Part] | None = None,
    ranks: Ranks = ALONE,
    guard: StepGuard | None = None,
    stop: bool = False,
) -> PendingResult:
    """Updates the weights from the micro-batches of one optimizer step, and clears the gradients.

    On several ranks, each has its own `batches`, as many as the others, and `normalizer` is that of all of them
    together. `own`: the parts that the optimizer updates; default: all of each parameter. `guard` may leave the update
    out. `stop`: this rank was asked to stop; the result tells all ranks whether any was.
    """
    own = parts(model) if own is None else own
    outputs = backward(model, batches, objective, normalizer)
    loss, stopped = _over_ranks(torch.stack([out.loss for out in outputs]).sum(), stop, own, ranks)
    norm = clip_gradients(own, objective.clip, ranks)
    left_out = torch.zeros_like(loss) if guard is None else guard.leave_out(loss, norm)
    update(optimizer, None if guard is None else left_out)
    for part in own:
        part.parameter.grad = part.local.grad = None
    return PendingResult(loss, norm, [out.q for out in outputs], left_out, stopped)


def backward(
    model: StepQModel, batches: Sequence[Planned], objective: Objective, normalizer: float | None = None
) -> list[StepLoss]:
    """Adds up the gradient of one optimizer step over its micro-batches, and returns the loss and scores of each.

    Each micro-batch is divided by `normalizer`, the trajectories (or steps) of all of them together, so that packing,
    accumulation and the number of ranks do not change the gradient. Default: that of `batches`.
    """
    model.train()
    if normalizer is None:
        normalizer = objective.normalizer_of([batch for batch, _ in batches])
    outputs = []
    for batch, plan in batches:
        out = objective(model, batch, plan, normalizer)
        out.loss.backward()
        outputs.append(StepLoss(out.loss.detach(), out.q))
    return outputs


def _over_ranks(loss: torch.Tensor, stop: bool, own: Sequence[Part], ranks: Ranks) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums the loss, the requests to stop, and the gradients of parameters that each rank has whole."""
    gradients = [parameter.grad for parameter in replicated(own) if parameter.grad is not None]
    flags = torch.stack([loss.float(), torch.full_like(loss, float(stop), dtype=torch.float32)])
    sums = ranks.add_up(torch.cat([flags, *(gradient.flatten().float() for gradient in gradients)]))
    for gradient, total in zip(gradients, sums[2:].split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))
    return sums[0], sums[1]


def clip_gradients(own: Sequence[Part], clip: float, ranks: Ranks = ALONE) -> torch.Tensor:
    """Returns the norm of all gradients (scalar, float32), and scales them down to a norm of `clip` if it is larger.

    The parts of each rank get the gradients of their parameters.
    """
    whole: list[torch.Tensor] = []
    divided: list[torch.Tensor] = []
    copies = 1  # ranks that have the same part of a parameter
    for part in own:
        gradient = part.take_gradient()
        if gradient is None:
            continue
        (divided if part.sharded else whole).append(gradient)
        if part.sharded:
            mesh = part.parameter.device_mesh  # type: ignore[attr-defined]
            copies = ranks.world // mesh.size(mesh.ndim - 1)
    # every rank adds what it has, so that all get the same bits; a part that several ranks have counts once
    square = ranks.add_up(_square_norm(divided, own) / copies + _square_norm(whole, own) / ranks.world)
    norm = square.sqrt()
    if clip:
        torch.nn.utils.clip_grads_with_norm_([part.local for part in own if part.local.grad is not None], clip, norm)
    return norm


def _square_norm(gradients: list[torch.Tensor], own: Sequence[Part]) -> torch.Tensor:
    """The sum of the squares of all numbers, float32."""
    if not gradients:
        return torch.zeros((), device=own[0].local.device)
    # in float32 for bfloat16 gradients too, because torch would round their norm to bfloat16
    return torch.stack([torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients]).square().sum()
