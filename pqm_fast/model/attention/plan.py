"""The plan of a batch: how its tokens attend and which rows the Q-value head reads, made on the host."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from pqm_kernels import StepsByRow, steps_by_row

from pqm_fast.data.pack import PackedBatch
from pqm_fast.model.attention.backend import Backend
from pqm_fast.model.attention.paths import AttentionPaths
from pqm_fast.model.attention.sdpa import PaddedAttention
from pqm_fast.model.attention.varlen import VarlenAttention


# Not frozen: torch.compile (2.11) specialises on every field of a frozen dataclass, and would recompile for each batch.
@dataclass
class HeadRows:
    """The final hidden states that a batch computes, and those of them that the Q-value head reads.

    R rows are computed; without `tokens` these are all T tokens.
    """

    step_index: torch.Tensor  # [S] int64, the row of each step's hidden state
    steps_by_row: StepsByRow  # the inverse, for the backward pass of the head
    tokens: torch.Tensor | None = None  # [R] int64, ascending: the token of each row

    def map_tensors(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "HeadRows":
        tokens = None if self.tokens is None else function(self.tokens)
        return HeadRows(function(self.step_index), StepsByRow(*map(function, self.steps_by_row)), tokens)


@dataclass  # not frozen: see HeadRows
class BatchPlan:
    """How the model computes one packed batch. Made on the host from plain tensors; call `to` before use."""

    attention: PaddedAttention | VarlenAttention
    head: HeadRows

    def to(self, device: torch.device | str) -> "BatchPlan":
        """Copies to a device, without waiting for the copies."""
        return self._map_tensors(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> "BatchPlan":
        """Copies to page-locked memory, from which a copy to a GPU runs in the background."""
        return self._map_tensors(lambda x: x.pin_memory())

    def _map_tensors(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "BatchPlan":
        return BatchPlan(self.attention.map_tensors(function), self.head.map_tensors(function))


@dataclass(frozen=True)
class Planner:
    """Makes the `BatchPlan` of a batch on the host, from plain tensors. It may run in the workers of a DataLoader."""

    backend: Backend
    step_rows_only: bool = False
    """After attention, the last layer computes only the rows that steps read."""
    row_multiple: int = 1
    """The number of these rows is rounded up to a multiple of this by repeating the last one."""

    def __call__(self, batch: PackedBatch) -> BatchPlan:
        """Waits for the device if the batch is on one, so call it before the batch is moved."""
        paths = AttentionPaths.of(batch)
        attention = PaddedAttention.of(paths) if self.backend == "sdpa" else VarlenAttention.of(paths, self.backend)
        return BatchPlan(attention, self._head_rows(batch))

    def _head_rows(self, batch: PackedBatch) -> HeadRows:
        step_tokens = batch.step_tokens.cpu()
        if not self.step_rows_only:
            return HeadRows(step_tokens, steps_by_row(step_tokens, batch.input_ids.shape[0]))
        tokens, step_index = (torch.from_numpy(x) for x in np.unique(step_tokens.numpy(), return_inverse=True))
        if not len(tokens):  # token 0 instead, so that every parameter gets its (zero) gradient
            tokens = torch.zeros(1, dtype=torch.int64)
        num_repeats = -len(tokens) % self.row_multiple
        tokens = torch.cat([tokens, tokens[-1:].expand(num_repeats)])
        return HeadRows(step_index, steps_by_row(step_index, len(tokens)), tokens)
