"""Attention through PyTorch's SDPA: sequences of similar length run as one padded batch, so that no [T, T] mask is
needed. It runs on any device, with gradients. On a GPU it uses only kernels that keep no scores."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pqm_fast.model.attention.gather import RowGather
from pqm_fast.model.attention.paths import AttentionPaths
from pqm_fast.model.attention.precision import compute_dtype

# For a GPU. Left to itself, PyTorch may fall back to its "math" kernel, which keeps every score. cuDNN's kernel makes a
# new plan for each shape, and here nearly every batch has new shapes.
KEEP_NO_SCORES = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
# Bytes: the size of a head on a GPU and the row stride of a mask must be multiples of this
ALIGNMENT = 16
# Elements: ALIGNMENT in half precision; float32 masks are padded alike
MASK_MULTIPLE = 8


@dataclass(frozen=True)
class PaddedGroup:
    """n sequences as a padded batch of Q queries and K keys each; each sequence is padded by repeating its last row."""

    sequences: int
    queries: int
    keys: int
    causal: bool  # no sequence has keys before its first query
    first: torch.Tensor  # [n] int64, the key at the position of the first query
    last: torch.Tensor  # [n] int64, the key at the position of the last query


@dataclass(eq=False)  # not frozen: see HeadRows
class PaddedAttention:
    """`AttentionPaths` in groups of sequences with similar numbers of queries and of keys, one group after the other.
    Masks are made when a layer first needs them and kept for the other layers."""

    groups: tuple[PaddedGroup, ...]
    gather_queries: RowGather  # from the rows of the batch to the padded places of all queries
    gather_keys: RowGather  # from the rows of the batch to the padded places of all keys
    gather_outputs: RowGather  # from the places of queries back to the rows
    # the masks by number of the group, window and dtype
    masks: dict[tuple[int, int | None, torch.dtype], torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: AttentionPaths) -> "PaddedAttention":
        first_query, first_key = (np.cumsum(lengths) - lengths for lengths in (paths.queries, paths.keys))
        size_classes = np.frexp(np.stack([paths.keys, paths.queries]) - 1)[1]  # lengths up to 2^class
        groups, queries, keys = [], [], []
        for size_class in np.unique(size_classes, axis=1).T:
            members = np.flatnonzero((size_classes == size_class[:, None]).all(0))
            num_queries, num_keys = paths.queries[members], paths.keys[members]
            queries.append(_padded_ranges(first_query[members], num_queries))
            keys.append(_padded_ranges(first_key[members], num_keys))
            first, last = num_keys - num_queries, num_keys - 1
            groups.append(
                PaddedGroup(
                    sequences=len(members),
                    queries=int(num_queries.max()),
                    keys=int(num_keys.max()),
                    causal=not first.any(),
                    first=torch.from_numpy(first),
                    last=torch.from_numpy(last),
                )
            )
        gather_queries, gather_outputs = RowGather.there_and_back(*_concatenated(queries))
        gather_keys = gather_queries
        if paths.rows is not None:
            key_places, real = _concatenated(keys)
            gather_keys = RowGather.of(paths.rows[key_places], int(paths.queries.sum()), used=real)
        return cls(tuple(groups), gather_queries, gather_keys, gather_outputs)

    def map_tensors(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "PaddedAttention":
        return PaddedAttention(
            tuple(replace(g, first=function(g.first), last=function(g.last)) for g in self.groups),
            self.gather_queries.map_tensors(function),
            self.gather_keys.map_tensors(function),
            self.gather_outputs.map_tensors(function),
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
        """query [1, H, T, d], key and value [1, H_kv, T, d] -> [1, T, H, d]."""
        mask_dtype = compute_dtype(value)  # a mask of another dtype would be copied, and kept, by SDPA in every layer
        query_shapes = [(group.sequences, group.queries) for group in self.groups]
        key_shapes = [(group.sequences, group.keys) for group in self.groups]
        queries = _padded_batches(self.gather_queries, query, query_shapes)
        keys = _padded_batches(self.gather_keys, key, key_shapes)
        values = _padded_batches(self.gather_keys, value, key_shapes)
        outputs = []
        for number, group in enumerate(self.groups):
            windowed = window is not None and window < group.keys
            masked = windowed or softcap or not group.causal
            mask = self._mask(number, window if windowed else None, mask_dtype) if masked else None
            q, k, v = queries[number], keys[number], values[number]
            if softcap and mask is not None:
                out = _softcapped(q, k, v, mask, softcap=softcap, scaling=scaling, dropout=dropout)
            else:
                out = _uncapped(q, k, v, mask, scaling=scaling, dropout=dropout)
            outputs.append(out.transpose(1, 2).flatten(0, 1))
        flat = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return self.gather_outputs(flat).unsqueeze(0)

    def _mask(self, number: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """[n, 1, Q, K], added to the scores: 0 where a query of this group sees a key, otherwise -inf."""
        if (number, window, dtype) not in self.masks:
            group = self.groups[number]
            query, key = (torch.arange(n, device=group.first.device) for n in (group.queries, group.keys))
            # the key at the position of each query; padding repeats the last query
            position = torch.minimum(group.first[:, None] + query, group.last[:, None])
            distance = position[:, :, None] - key
            is_visible = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            # SDPA would copy, and keep, a mask with rows of other strides in every layer
            padded_keys = group.keys + -group.keys % MASK_MULTIPLE
            shape = (group.sequences, group.queries, padded_keys)
            aligned = torch.full(shape, float("-inf"), dtype=dtype, device=is_visible.device)
            self.masks[number, window, dtype] = aligned[..., : group.keys].masked_fill_(is_visible, 0.0)[:, None]
        return self.masks[number, window, dtype]


def _padded_ranges(start: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ranges start..start+count-1 as the rows of a matrix, padded by repeating their last number, and where
    in it the numbers are not padding."""
    column = np.arange(count.max())
    return start[:, None] + np.minimum(column, count[:, None] - 1), column < count[:, None]


def _concatenated(groups: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of all groups, and which are not padding, each flat and one group after the other."""
    numbers, real = (np.concatenate([x.ravel() for x in part]) for part in zip(*groups, strict=True))
    return numbers, real


def _padded_batches(gather: RowGather, x: torch.Tensor, shapes: list[tuple[int, int]]) -> list[torch.Tensor]:
    """x [1, H, T, d] -> [n, H, L, d] for each shape (n, L)."""
    parts = gather(x.squeeze(0).transpose(0, 1)).split([n * length for n, length in shapes])
    return [part.unflatten(0, shape).transpose(1, 2) for part, shape in zip(parts, shapes, strict=True)]


def _repeat_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[n, H_kv, K, d] -> [n, heads, K, d]."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def _uncapped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """Attention under the mask, or causal without one: [n, H, Q, d]."""
    size = value.shape[-1]
    if query.is_cuda:  # its kernel for masks and float32 needs a key for every query head, and aligned heads
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        key, value = _repeat_heads(key, query.shape[1]), _repeat_heads(value, query.shape[1])
        query, key, value = map(_aligned, (query, key, value))
    with sdpa_kernel(KEEP_NO_SCORES) if query.is_cuda else nullcontext():
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )[..., :size]


def _aligned(x: torch.Tensor) -> torch.Tensor:
    """Pads heads with zeros to a multiple of ALIGNMENT bytes."""
    padding = -x.shape[-1] % (ALIGNMENT // x.element_size())
    return F.pad(x, (0, padding)) if padding else x


def _softcapped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    *,
    softcap: float,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """Attention with scores capped to +-softcap by a tanh (Gemma 2), which SDPA does not offer: [n, H, Q, d]."""
    key, value = _repeat_heads(key, query.shape[1]), _repeat_heads(value, query.shape[1])
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap) + mask
    softmax_dtype = torch.promote_types(scores.dtype, torch.float32)
    return F.dropout(scores.softmax(-1, dtype=softmax_dtype).to(value.dtype), dropout) @ value
