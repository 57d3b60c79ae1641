"""Attention through kernels made for sequences laid end to end (flash-attn, PyTorch's varlen): no mask, no padding
between sequences, no square of the batch. For half precision on CUDA, with gradients.

In a prefix tree the keys and values of each path are gathered, and their gradients summed back in a fixed order.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from pqm_fast.model.attention import kernels
from pqm_fast.model.attention.gather import Gather
from pqm_fast.model.attention.paths import Paths
from pqm_fast.model.attention.precision import compute_dtype


@dataclass(eq=False)  # not frozen: see BatchPlan
class Varlen:
    """`Paths` as the kernels take them."""

    cu_queries: torch.Tensor  # [G+1] int32, from 0 to T
    cu_keys: torch.Tensor  # [G+1] int32
    longest_query: int  # on the host, likewise the next: the kernels ask for them
    longest_key: int
    backend: str  # "flash" or "varlen"
    paths: Gather | None  # of keys and values; None if each sequence sees its own rows alone

    @classmethod
    def of(cls, paths: Paths, backend: str) -> "Varlen":
        cu_queries, cu_keys = (
            torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32)) for lengths in (paths.queries, paths.keys)
        )
        longest = int(paths.queries.max()), int(paths.keys.max())
        gather = None if paths.rows is None else Gather.of(paths.rows, int(cu_queries[-1]))
        return cls(cu_queries, cu_keys, *longest, backend, gather)

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Varlen":
        return replace(
            self,
            cu_queries=change(self.cu_queries),
            cu_keys=change(self.cu_keys),
            paths=None if self.paths is None else self.paths.each(change),
        )

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
        """query [1, H, T, d], key and value [1, H_kv, T, d] -> [1, T, H, d], in half precision."""
        dtype = compute_dtype(value)
        if dtype not in kernels.HALF:
            raise ValueError(f"the kernels of {self.backend!r} take float16 and bfloat16, not {dtype}")
        # [rows, heads, d]
        q, k, v = (x.squeeze(0).transpose(0, 1).to(dtype) for x in (query, key, value))
        if self.paths is not None:
            k, v = self.paths(k), self.paths(v)
        kernel = kernels.find(
            self.backend, query.device.index, q.shape[-1], softcap=bool(softcap), dropout=bool(dropout)
        )
        cu_seqlens, longest = (self.cu_queries, self.cu_keys), (self.longest_query, self.longest_key)
        return kernel(
            q, k, v, *cu_seqlens, *longest, scale=scaling, window=window, softcap=softcap, dropout=dropout
        ).unsqueeze(0)
