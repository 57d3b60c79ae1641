"""A way to train: the settings that it may choose from, its plan for given trajectories, and its optimizer step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pqm_benchmarks.comparison.rounds import Setting
from pqm_benchmarks.shared.workload import Questions
from pqm_benchmarks.work.flops import ModelFlops, RowCounts, training_flops

LEARNING_RATE, CLIP, ZETA = 1e-5, 1.0, 4.0


class Step(Protocol):
    """The optimizer step of a model that it holds."""

    def ahead(self, batches: list[Any]) -> list[Any]:
        """The micro-batches after all the work that a data loader would do."""

    def __call__(self, batches: list[Any]) -> Callable[[], float]:
        """Trains on micro-batches on the host without waiting for the device. Returns a function that waits for the
        loss and returns it."""


@dataclass(frozen=True)
class PassPlan:
    """One pass over all trajectories, batched by one way."""

    steps: list[list[Any]]
    """The micro-batches of each optimizer step."""
    rows: RowCounts
    """The rows that are computed. They include padding, but not the tokens that fill a fixed token budget."""
    logit_passes: int = 0
    """Products of all tokens with the vocabulary head: 1 forward, 2 backward."""
    excess: float = 1.0
    """Work over the work for as many trajectories of a whole data set, from which batches can be chosen better."""
    notes: dict[str, float] = field(default_factory=dict)
    """Further figures for the report."""

    def flops(self, model: ModelFlops) -> int:
        """Forward + backward of everything that is computed; what is computed a second time counts once."""
        return sum(training_flops(self.rows, model).values()) + self.logit_passes * self.rows.tokens * model.logits


@dataclass(frozen=True)
class TrainingWay:
    """One implementation of training."""

    title: str
    source: str
    """The implementation that it follows, and what is done in its favour."""
    precision: str
    """Precision of weights and optimizer on a GPU."""
    families: tuple[tuple[Setting, ...], ...]
    """Settings, tried family by family, from large micro-batches to small ones."""
    plan: Callable[[Questions, int, Setting, torch.device], PassPlan]
    """Makes a plan from questions, the number of optimizer steps in a pass, a setting, and the device."""
    build: Callable[[Any, torch.device, torch.dtype, Setting], Step]
    """Makes a model with random weights from a transformers config. The dtype is that of the computation."""


def host(array: np.ndarray, device: torch.device) -> Tensor:
    """A tensor on the host, pinned if the device is a GPU, which can then copy it without waiting."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor
