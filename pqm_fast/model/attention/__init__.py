"""How packed tokens attend: each to the tokens before it in its own trajectory, whatever else is in the batch.

Registered with transformers as the attention implementation `pqm_packed`. How the batch is laid out travels with the
forward call as the keyword `packing`, which a `Planner` makes of the batch. Plain packing and prefix trees follow one
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


@dataclass  # not frozen: of such torch 2.11 compiles every field in, and a layer anew for each batch
class Packing:
    """How the tokens of one packed batch attend. Made on the host, of plain tensors; used once `to` a device."""

    attention: Grouped | Varlen
    step_index: torch.Tensor  # [S] int64, where each step's row is among the final hidden states
    by_row: StepsByRow  # the other way round, for the backward of the head
    rows: torch.Tensor | None = None  # [R] int64, in order: the tokens that a step reads, if only they matter

    def to(self, device: torch.device | str) -> "Packing":
        """Without waiting for the copies."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> "Packing":
        """In page-locked memory, from which a copy to a GPU waits for nothing."""
        return self._each(lambda x: x.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Packing":
        return Packing(
            self.attention.each(change),
            change(self.step_index),
            StepsByRow(*map(change, self.by_row)),
            None if self.rows is None else change(self.rows),
        )


@dataclass(frozen=True)
class Planner:
    """Makes the `Packing` of a batch, on the host and of plain tensors: it may run in the workers of a DataLoader."""

    backend: Backend
    step_rows: bool = False  # the last layer computes only the rows that steps read, once it has attended
    multiple_of: int = 1  # so many rows, or a multiple: the last of them is repeated

    def __call__(self, batch: PackedBatch) -> Packing:
        """Waits for the device if the batch is on one: call it before the batch is moved."""
        paths = Paths.of(batch)
        attention = Grouped.of(paths) if self.backend == "sdpa" else Varlen.of(paths, self.backend)
        step_index = batch.step_index.cpu()
        if not self.step_rows:
            return Packing(attention, step_index, steps_by_row(step_index, batch.input_ids.shape[0]))
        read, index = np.unique(step_index.numpy(), return_inverse=True)
        # without any step row 0 stands in, so that every parameter has its (zero) gradient
        rows = read if len(read) else np.zeros(1, dtype=np.int64)
        rows = np.pad(rows, (0, -len(rows) % self.multiple_of), mode="edge")
        step_index = torch.from_numpy(index)
        return Packing(attention, step_index, steps_by_row(step_index, len(rows)), torch.from_numpy(rows))


@torch.compiler.disable  # what is compiled around it looks at nothing of a batch
def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packing: Packing | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """transformers' attention signature: query [1, H, T, d], key and value [1, H_kv, T, d] -> ([1, T, H, d], None)."""
    if packing is None:
        raise ValueError("packed attention was called without `packing`: this architecture does not pass it on")
    for name in ("s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"packed attention does not support {name}")
    out = packing.attention.attend(
        query, key, value, scaling=scaling, dropout=dropout, window=sliding_window, softcap=softcap
    )
    return out, None


# no mask function is registered under this name, so transformers builds no mask
AttentionInterface.register(NAME, packed_attention)
