"""The optimizer step of the ways that are not ours: accumulate, clip, update."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pqm_benchmarks.train.ways.way import CLIP


@dataclass(frozen=True)
class MicroBatch:
    """The arguments of a loss, with tensors on the host, and the weight of this loss in that of the optimizer step."""

    arguments: dict[str, Any]
    weight: float

    def on(self, device: torch.device) -> dict[str, Any]:
        def move(value: Any) -> Any:
            return value.to(device, non_blocking=True) if torch.is_tensor(value) else value

        return {name: move(value) for name, value in self.arguments.items()}


@dataclass(frozen=True)
class PlainStep:
    """A `Step` on micro-batches of `MicroBatch`."""

    loss: Callable[..., Tensor]
    parameters: list[torch.nn.Parameter]
    optimizer: Any
    device: torch.device

    def ahead(self, batches: list[MicroBatch]) -> list[MicroBatch]:
        return batches

    def backward(self, batches: list[MicroBatch]) -> Tensor:
        """Adds the gradient of an optimizer step. Returns its loss, a float64 scalar on the device."""
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        for batch in batches:
            loss = batch.weight * self.loss(**batch.on(self.device))
            loss.backward()
            total += loss.detach()
        return total

    def __call__(self, batches: list[MicroBatch]) -> Callable[[], float]:
        total = self.backward(batches)
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return lambda: float(total)


def spread(batches: Sequence[Any], steps: int) -> list[list[Any]]:
    """The batches in order, divided over `steps` optimizer steps, or one batch each if there are fewer batches."""
    cuts = np.array_split(np.arange(len(batches)), min(steps, len(batches)))
    return [[batches[i] for i in indices] for indices in cuts]
