"""Attention through kernels for sequences laid end to end (flash-attn, PyTorch's varlen_attn): without masks, without
padding between sequences, and without the square of the batch. They need half precision on CUDA, and have gradients.

In a prefix tree the keys and values of each path are gathered, and their gradients summed back in a fixed order.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from pqm_fast.model.attention import kernels
from pqm_fast.model.attention.gather import RowGather
from pqm_fast.model.attention.paths import AttentionPaths
from pqm_fast.model.attention.precision import compute_dtype


@dataclass(eq=False)  # not frozen: see HeadRows
class VarlenAttention:
    """`AttentionPaths` as the arguments of the kernels."""

    cu_queries: torch.Tensor  # [G+1] int32, from 0 to T
    cu_keys: torch.Tensor  # [G+1] int32
    longest_query: int  # of a sequence; plain numbers, as the kernels expect them on the host
    longest_key: int
    backend: str  # "flash" or "varlen"
    gather_paths: RowGather | None  # of keys and values; None if each sequence sees only its own rows

    @classmethod
    def of(cls, paths: AttentionPaths, backend: str) -> "VarlenAttention":
        cu_queries, cu_keys = (
            torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32)) for lengths in (paths.queries, paths.keys)
        )
        return cls(
            cu_queries=cu_queries,
            cu_keys=cu_keys,
            longest_query=int(paths.queries.max()),
            longest_key=int(paths.keys.max()),
            backend=backend,
            gather_paths=None if paths.rows is None else RowGather.of(paths.rows, int(cu_queries[-1])),
        )

    def map_tensors(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "VarlenAttention":
        return replace(
            self,
            cu_queries=function(self.cu_queries),
            cu_keys=function(self.cu_keys),
            gather_paths=None if self.gather_paths is None else self.gather_paths.map_tensors(function),
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
        """query [1, H, T, d], key and value [1, H_kv, T, d] -> [1, T, H, d], in half precision.

        Raises ValueError in any other precision, and for arguments that no kernel serves.
        """
        dtype = compute_dtype(value)
        if dtype not in kernels.HALF:
            raise ValueError(f"the kernels of {self.backend!r} take float16 and bfloat16, not {dtype}")
        # [T, heads, d]
        q, k, v = (x.squeeze(0).transpose(0, 1).to(dtype) for x in (query, key, value))
        if self.gather_paths is not None:
            k, v = self.gather_paths(k), self.gather_paths(v)
        kernel = kernels.find(
            self.backend, query.device.index, q.shape[-1], softcap=bool(softcap), dropout=bool(dropout)
        )
        out = kernel(
            q,
            k,
            v,
            cu_queries=self.cu_queries,
            cu_keys=self.cu_keys,
            longest_query=self.longest_query,
            longest_key=self.longest_key,
            scale=scaling,
            window=window,
            softcap=softcap,
            dropout=dropout,
        )
        return out.unsqueeze(0)
