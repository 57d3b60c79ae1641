"""Attention of plain packing through kernels made for it (flash-attn, PyTorch's varlen): no mask, no padding between
sequences, no square of the batch. For half precision on CUDA, with gradients."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from pqm_fast.attention import kernels
from pqm_fast.attention.precision import compute_dtype


@dataclass(eq=False)  # not frozen: see Packing
class Varlen:
    """Sequences end to end. Padding is sequences too, so that every row is written: what a kernel leaves unwritten
    may be NaN, and NaN times a gradient of 0 is NaN in the gradient of every weight.

    Where only step rows attend, the other rows have queries of 0 and are computed as well, since a row's place in its
    sequence says what it sees. The price is attention at all rows in that one layer; projections and MLP are spared.
    """

    cu_seqlens: torch.Tensor  # [G+1] int32, from 0 to T
    longest: int  # tokens of the longest sequence, on the host: the kernels ask for it
    backend: str  # "flash" or "varlen"
    rows: torch.Tensor | None = None  # [R] int64, in order: the rows that attend, if not all; the last may be repeated
    distinct: int = 0  # how many of them are no repetition

    @classmethod
    def of(cls, lengths: tuple[int, ...], total: int, backend: str, rows: np.ndarray | None = None) -> "Varlen":
        """Sequences of `lengths`, then padding up to `total` tokens, in pieces that make no kernel work longer."""
        real = sum(lengths)
        longest = max(lengths, default=min(total, 128))
        ends = np.concatenate([[0], np.cumsum(lengths), np.arange(real + longest, total, longest), [total]])
        cu_seqlens = torch.from_numpy(np.unique(ends).astype(np.int32))
        if rows is None:
            return cls(cu_seqlens, longest, backend)
        return cls(cu_seqlens, longest, backend, torch.from_numpy(rows), len(np.unique(rows)))

    def to(self, device: torch.device | str) -> "Varlen":
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> "Varlen":
        return self._each(lambda x: x.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Varlen":
        rows = None if self.rows is None else change(self.rows)
        return replace(self, cu_seqlens=change(self.cu_seqlens), rows=rows)

    @torch.compiler.disable
    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float | None,
        dropout: float = 0.0,
        window: int | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        """query [1, H, Q, d], key and value [1, H_kv, T, d] -> [1, Q, H, d], in half precision."""
        dtype = compute_dtype(value)
        if dtype not in kernels.HALF:
            raise ValueError(f"the kernels of {self.backend!r} take float16 and bfloat16, not {dtype}")
        # [rows, heads, d]
        q, k, v = (x.squeeze(0).transpose(0, 1).to(dtype) for x in (query, key, value))
        if self.rows is not None:
            # repetitions stay out: index_copy would give each of them the whole gradient of their row
            q = q.new_zeros(len(k), *q.shape[1:]).index_copy(0, self.rows[: self.distinct], q[: self.distinct])
        kernel = kernels.find(
            self.backend, query.device.index, q.shape[-1], softcap=bool(softcap), dropout=bool(dropout)
        )
        out = kernel(
            q, k, v, self.cu_seqlens, self.longest, scale=scaling, window=window, softcap=softcap, dropout=dropout
        )
        return (out if self.rows is None else out.index_select(0, self.rows)).unsqueeze(0)
