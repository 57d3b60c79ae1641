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
from pqm_fast.train.objective import Objective

Planned = tuple[PackedBatch, BatchPlan | None]
"""A micro-batch on the host, and its attention plan if that was made ahead."""


class PendingResult:
    """The results of a step, on their way to the host.

    After `wait`, these attributes may be read: `loss` and `grad_norm` (before clipping), floats; `scores`, the Q-values
    [S] of each micro-batch, float32 on the host; `finished`, when the step ended, by `time.perf_counter`.
    """

    def __init__(self, loss: torch.Tensor, grad_norm: torch.Tensor, scores: list[torch.Tensor]):
        # from a GPU this copies into pinned memory, so the copy is queued behind the step and nothing waits
        self._scalars = torch.stack([loss, grad_norm]).to("cpu", non_blocking=True)
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
        self.loss, self.grad_norm = self._scalars.tolist()
        return self

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def train_step(
    model: StepQModel, optimizer: torch.optim.Optimizer, batches: Sequence[Planned], objective: Objective
) -> PendingResult:
    """Updates the weights from the micro-batches of one optimizer step, and clears the gradients."""
    outputs = backward(model, batches, objective)
    norm = clip_gradients(model, objective.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return PendingResult(torch.stack([out.loss for out in outputs]).sum(), norm, [out.q for out in outputs])


def backward(model: StepQModel, batches: Sequence[Planned], objective: Objective) -> list[StepLoss]:
    """Adds up the gradient of one optimizer step over its micro-batches, and returns the loss and scores of each.

    Each micro-batch is divided by the trajectories (or steps) of all of them together, so that packing and accumulation
    do not change the gradient.
    """
    model.train()
    normalizer = objective.normalizer([batch for batch, _ in batches])
    outputs = []
    for batch, plan in batches:
        out = objective(model, batch, plan, normalizer)
        out.loss.backward()
        outputs.append(StepLoss(out.loss.detach(), out.q))
    return outputs


def clip_gradients(model: torch.nn.Module, clip: float) -> torch.Tensor:
    """Returns the norm of all gradients (scalar, float32), and scales them down to a norm of `clip` if it is larger."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    # in float32 for bfloat16 gradients too, because torch would round their norm to bfloat16
    norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float32) for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    if clip:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm
