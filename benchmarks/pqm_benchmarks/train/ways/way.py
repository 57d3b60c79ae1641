"""What is timed: a way to train, the settings that it may choose from, and its plan for given trajectories."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pqm_benchmarks.work.run import Layout, Products, work
from pqm_fast.data.trajectory import Trajectory

Setting = dict[str, Any]
"""What a way can choose by what is fastest on the device, such as {"batch": 32, "recompute": False}."""
Questions = Sequence[Sequence[Trajectory]]
"""The solutions of each question."""
LEARNING_RATE, CLIP, ZETA = 1e-5, 1.0, 4.0


class Step(Protocol):
    """An optimizer step of a model that it holds."""

    def ahead(self, batches: list[Any]) -> list[Any]:
        """Micro-batches with all that a loader would have done to them."""

    def __call__(self, batches: list[Any]) -> Callable[[], float]:
        """Trains on micro-batches on the host and waits for nothing; what it returns waits, and gives the loss."""


@dataclass(frozen=True)
class Plan:
    """A pass over all trajectories, as batched by one way."""

    steps: list[list[Any]]
    """The micro-batches of each optimizer step."""
    layout: Layout
    """What is computed, padding included. What fills a fixed token budget at its end is not."""
    logit_passes: int = 0
    """Products of all tokens with the vocabulary head: 1 forward, 2 backward."""
    excess: float = 1.0
    """Work over that for as many trajectories out of a whole data set, from which batches can be chosen better."""
    notes: dict[str, float] = field(default_factory=dict)
    """What else is worth knowing."""

    def flops(self, products: Products) -> int:
        """Forward + backward of everything that is computed; what is computed a second time counts once."""
        return sum(work(self.layout, products).values()) + self.logit_passes * self.layout.tokens * products.logits


@dataclass(frozen=True)
class Way:
    """`families` are tried one after the other, from large micro-batches to small ones."""

    title: str
    source: str
    """What it is after, and what is done in its favour."""
    precision: str
    """Of weights and optimizer, on a GPU."""
    families: tuple[tuple[Setting, ...], ...]
    plan: Callable[[Questions, int, Setting, torch.device], Plan]
    """From questions and the number of optimizer steps in a pass."""
    build: Callable[[Any, torch.device, torch.dtype, Setting], Step]
    """From a transformers config, with random weights. The dtype is that of the computation."""


@dataclass(frozen=True)
class MicroBatch:
    """Arguments of a loss, tensors on the host, and the weight of this loss in that of the optimizer step."""

    arguments: dict[str, Any]
    weight: float

    def on(self, device: torch.device) -> dict[str, Any]:
        def move(value: Any) -> Any:
            return value.to(device, non_blocking=True) if torch.is_tensor(value) else value

        return {name: move(value) for name, value in self.arguments.items()}


@dataclass(frozen=True)
class PlainStep:
    """The optimizer step of the ways that are not ours: accumulate, clip, update."""

    loss: Callable[..., Tensor]
    parameters: list[torch.nn.Parameter]
    optimizer: Any
    device: torch.device

    def ahead(self, batches: list[MicroBatch]) -> list[MicroBatch]:
        return batches

    def backward(self, batches: list[MicroBatch]) -> Tensor:
        """Adds the gradient of an optimizer step. Returns its loss, on the device."""
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


def flat(questions: Questions) -> list[Trajectory]:
    return [trajectory for solutions in questions for trajectory in solutions]


def spread(batches: Sequence[Any], steps: int) -> list[list[Any]]:
    """Batches in order, over so many optimizer steps, or one each if there are fewer."""
    cuts = np.array_split(np.arange(len(batches)), min(steps, len(batches)))
    return [[batches[i] for i in own] for own in cuts]


def host(array: np.ndarray, device: torch.device) -> Tensor:
    """A tensor on the host, from where a GPU takes it without waiting."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor
