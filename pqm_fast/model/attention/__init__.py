"""How packed tokens attend: each to the tokens before it in its own trajectory, whatever else is in the batch.

Registered with transformers as the attention implementation `pqm_packed`. How the batch is laid out travels with the
forward call as the keyword `plan`, which a `Planner` makes of the batch. Plain packing and prefix trees follow one
plan (`Paths`): the queries of a sequence see the path that ends with them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from pqm_kernels import StepsByRow, steps_by_row
from transformers import AttentionInterface

from pqm_fast.data.pack import PackedBatch
from pqm_fast.model.attention.backend import BACKENDS, Backend, choose_backend
from pqm_fast.model.attention.paths import Paths
from pqm_fast.model.attention.sdpa import Grouped
from pqm_fast.model.attention.varlen import Varlen

__all__ = ["BACKENDS", "NAME", "Backend", "Packing", "Planner", "choose_backend", "packed_attention"]

NAME = "pqm_packed"


@dataclass  # not frozen: torch 2.11 bakes the fields of a frozen one into what it compiles
class HeadRows:
    """Which final hidden states there are, and which of them the Q-value head reads."""

    step_index: torch.Tensor  # [S] int64, the row of each step's hidden state
    steps_by_row: StepsByRow  # its inverse, for the backward of the head
    tokens: torch.Tensor | None = None  # [R] int64, in order: the token of each row; None: every token has one

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "HeadRows":
        tokens = None if self.tokens is None else change(self.tokens)
        return HeadRows(change(self.step_index), StepsByRow(*map(change, self.steps_by_row)), tokens)


@dataclass  # not frozen: see HeadRows
class BatchPlan:
    """How the model computes one packed batch. Made on the host, of plain tensors; used once `to` a device."""

    attention: Grouped | Varlen
    head: HeadRows

    def to(self, device: torch.device | str) -> "BatchPlan":
        """Without waiting for the copies."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> "BatchPlan":
        """In page-locked memory, from which a copy to a GPU waits for nothing."""
        return self._each(lambda x: x.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "BatchPlan":
        return BatchPlan(self.attention.each(change), self.head.each(change))


@dataclass(frozen=True)
class Planner:
    """Makes the `BatchPlan` of a batch, on the host and of plain tensors: it may run in the workers of a DataLoader."""

    backend: Backend
    step_rows: bool = False  # the last layer computes only the rows that steps read, once it has attended
    multiple_of: int = 1  # so many rows, or a multiple: the last of them is repeated

    def __call__(self, batch: PackedBatch) -> BatchPlan:
        """Waits for the device if the batch is on one: call it before the batch is moved."""
        paths = Paths.of(batch)
        attention = Grouped.of(paths) if self.backend == "sdpa" else Varlen.of(paths, self.backend)
        return BatchPlan(attention, self._head_rows(batch))

    def _head_rows(self, batch: PackedBatch) -> HeadRows:
        step_tokens = batch.step_tokens.cpu()
        if not self.step_rows:
            return HeadRows(step_tokens, steps_by_row(step_tokens, batch.input_ids.shape[0]))
        read, step_index = (torch.from_numpy(x) for x in np.unique(step_tokens.numpy(), return_inverse=True))
        # without any step token 0 stands in, so that every parameter has its (zero) gradient
        tokens = read if len(read) else torch.zeros(1, dtype=torch.int64)
        missing = -len(tokens) % self.multiple_of
        tokens = torch.cat([tokens, tokens[-1:].expand(missing)])
        return HeadRows(step_index, steps_by_row(step_index, len(tokens)), tokens)


@torch.compiler.disable  # what is compiled around it looks at nothing of a batch
def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    plan: BatchPlan | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """transformers' attention signature: query [1, H, T, d], key and value [1, H_kv, T, d] -> ([1, T, H, d], None)."""
    if plan is None:
        raise ValueError("packed attention was called without `plan`: this architecture does not pass it on")
    for name in ("s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"packed attention does not support {name}")
    out = plan.attention.attend(
        query, key, value, scaling=scaling, dropout=dropout, window=sliding_window, softcap=softcap
    )
    return out, None


# no mask function is registered under this name, so transformers builds no mask
AttentionInterface.register(NAME, packed_attention)
