"""Attention through PyTorch's SDPA: sequences of about the same length run as one padded batch, so that no [T, T]
mask is needed. For any device, with gradients; on a GPU through kernels that keep no scores, or not at all."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pqm_fast.model.attention.gather import Gather
from pqm_fast.model.attention.paths import Paths
from pqm_fast.model.attention.precision import compute_dtype

# On a GPU. PyTorch's own choice may fall to its "math" kernel, which keeps every score; cuDNN's makes a plan anew for
# each shape, and here nearly every batch has shapes of its own.
KEEP_NO_SCORES = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


@dataclass(frozen=True)
class Group:
    """n sequences as a padded batch; each is padded by repeating its last row."""

    shape: tuple[int, int, int]  # n, queries, keys
    causal: bool  # no sequence has keys before its first query
    first: torch.Tensor  # [n] int64, the key that is the first query's own
    last: torch.Tensor  # [n] int64, that of the last query


@dataclass(eq=False)  # not frozen: see BatchPlan
class Grouped:
    """`Paths` in groups of sequences with about as many queries and about as many keys, one group after the other.
    Masks are made when a layer first needs them and kept for the others."""

    groups: tuple[Group, ...]
    queries: Gather  # from the batch; likewise the keys
    keys: Gather
    outputs: Gather  # back from the groups
    masks: dict[tuple[int, int | None, torch.dtype], torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: Paths) -> "Grouped":
        first_query, first_key = (np.cumsum(n) - n for n in (paths.queries, paths.keys))
        sizes = np.frexp(np.stack([paths.keys, paths.queries]) - 1)[1]  # up to 2^size
        groups, queries, keys = [], [], []
        for size in np.unique(sizes, axis=1).T:
            own = np.flatnonzero((sizes == size[:, None]).all(0))
            queries.append(_padded(first_query[own], paths.queries[own]))
            keys.append(_padded(first_key[own], paths.keys[own]))
            first, last = paths.keys[own] - paths.queries[own], paths.keys[own] - 1
            shape = len(own), queries[-1][0].shape[1], keys[-1][0].shape[1]
            groups.append(Group(shape, not first.any(), torch.from_numpy(first), torch.from_numpy(last)))
        of_queries, outputs = Gather.there_and_back(*_flat(queries))
        of_keys = of_queries
        if paths.rows is not None:
            key, real = _flat(keys)
            of_keys = Gather.of(paths.rows[key], int(paths.queries.sum()), real)
        return cls(tuple(groups), of_queries, of_keys, outputs)

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Grouped":
        groups = tuple(Group(g.shape, g.causal, change(g.first), change(g.last)) for g in self.groups)
        return Grouped(groups, self.queries.each(change), self.keys.each(change), self.outputs.each(change))

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
        dtype = compute_dtype(value)  # a mask of another dtype SDPA would copy, and keep, in every layer
        q = self._batches(self.queries, query, 1)
        k, v = (self._batches(self.keys, x, 2) for x in (key, value))
        outputs = []
        for number, group in enumerate(self.groups):
            windowed = window is not None and window < group.shape[2]
            masked = windowed or softcap or not group.causal
            mask = self._mask(number, window if windowed else None, dtype) if masked else None
            if softcap and mask is not None:
                out = _softcapped(q[number], k[number], v[number], mask, softcap, scaling, dropout)
            else:
                out = _uncapped(q[number], k[number], v[number], mask, scaling, dropout)
            outputs.append(out.transpose(1, 2).flatten(0, 1))
        flat = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return self.outputs(flat).unsqueeze(0)

    def _batches(self, gather: Gather, x: torch.Tensor, side: int) -> list[torch.Tensor]:
        """[1, H, T, d] -> for each group [n, H, L, d], where L is that side of its shape."""
        shapes = [(group.shape[0], group.shape[side]) for group in self.groups]
        parts = gather(x.squeeze(0).transpose(0, 1)).split([n * length for n, length in shapes])
        return [part.unflatten(0, shape).transpose(1, 2) for part, shape in zip(parts, shapes, strict=True)]

    def _mask(self, number: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """[n, 1, Q, K], to be added to the scores: 0 where a query of this group sees a key, else -inf."""
        if (number, window, dtype) not in self.masks:
            group = self.groups[number]
            count, queries, keys = group.shape
            query, key = (torch.arange(n, device=group.first.device) for n in (queries, keys))
            own = torch.minimum(group.first[:, None] + query, group.last[:, None])  # queries of padding are the last
            back = own[:, :, None] - key
            seen = back >= 0 if window is None else (back >= 0) & (back < window)
            # rows of whole 16 bytes: a mask of others SDPA would copy, and keep, in every layer
            whole = torch.full((count, queries, keys + -keys % 8), float("-inf"), dtype=dtype, device=seen.device)
            self.masks[number, window, dtype] = whole[..., :keys].masked_fill_(seen, 0.0)[:, None]
        return self.masks[number, window, dtype]


def _padded(start: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranges start..start+count-1 as the rows of a matrix, padded by their last number; and where it is no padding."""
    column = np.arange(count.max())
    return start[:, None] + np.minimum(column, count[:, None] - 1), column < count[:, None]


def _flat(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Of all groups, one after the other."""
    rows, real = (np.concatenate([x.ravel() for x in part]) for part in zip(*parts, strict=True))
    return rows, real


def _every_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[n, H_kv, K, d] -> [n, heads, K, d]."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def _uncapped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """Under the mask, or causal without one. [n, H, Q, d]."""
    size = value.shape[-1]
    if query.is_cuda:  # whose kernel for masks and for float32 takes no fewer heads of keys, and whole 16 bytes of each
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        key, value = _every_head(key, query.shape[1]), _every_head(value, query.shape[1])
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
    """Heads of whole 16 bytes, the added numbers 0."""
    missing = -x.shape[-1] % (16 // x.element_size())
    return F.pad(x, (0, missing)) if missing else x


def _softcapped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    softcap: float,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """Attention with scores capped to +-softcap by a tanh (Gemma 2), which SDPA does not have. [n, H, Q, d]."""
    key, value = _every_head(key, query.shape[1]), _every_head(value, query.shape[1])
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap) + mask
    single = torch.promote_types(scores.dtype, torch.float32)
    return F.dropout(scores.softmax(-1, dtype=single).to(value.dtype), dropout) @ value
