"""Attention through PyTorch's SDPA: sequences of about the same length run as one padded batch, so that no [T, T]
mask is needed. For any device, with gradients; on a GPU through kernels that keep no scores, or not at all."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pqm_fast.attention.precision import compute_dtype
from pqm_fast.attention.rule import Rule

# On a GPU. PyTorch's own choice may fall to its "math" kernel, which keeps every score; cuDNN's makes a plan anew for
# each shape, and here nearly every batch has shapes of its own.
KEEP_NO_SCORES = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


@dataclass(frozen=True)
class Group:
    """n sequences as a padded batch; each is padded by repeating its last row."""

    queries: torch.Tensor  # [n, Q] int64, numbers among the rows that attend
    keys: torch.Tensor  # [n, K] int64, token rows
    lengths: torch.Tensor  # [n] int64, keys that are not padding


@dataclass(eq=False)  # not frozen: see Packing
class Grouped:
    """`inverse` [Q]: where each row that attends is found in the groups laid end to end. Masks are made when a layer
    first needs them and kept for the others."""

    groups: tuple[Group, ...]
    inverse: torch.Tensor
    causal: bool  # plain packing, every token attends: causality alone keeps padding on the right unseen
    rows: torch.Tensor  # as in Rule, likewise the next two
    end: torch.Tensor
    position: torch.Tensor
    masks: dict[tuple[int, int | None, torch.dtype], torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, rule: Rule, lengths: tuple[int, ...], *, causal: bool) -> "Grouped":
        """`lengths` of the sequences (trajectories or trees) in order. Rows beyond them are padding, which computes
        nothing of its own (it reads the first result; no loss ever reads it)."""
        # a batch of padding alone still has a row to compute
        length = np.array(lengths or (1,), dtype=np.int64)
        start = np.cumsum(length) - length
        first, after = np.searchsorted(rule.rows, [start, start + length])
        attending = after - first
        size = np.frexp(length - 1)[1]  # up to 2^size tokens
        groups, inverse, slots = [], np.zeros(len(rule.rows), dtype=np.int64), 0
        for own_size in np.unique(size[attending > 0]):
            members = np.flatnonzero((size == own_size) & (attending > 0))
            keys, _ = _padded(start[members], length[members])
            queries, real = _padded(first[members], attending[members])
            inverse[queries[real]] = slots + np.flatnonzero(real)
            slots += queries.size
            groups.append(Group(*map(torch.from_numpy, (queries, keys, length[members]))))
        rows, end, position = map(torch.from_numpy, (rule.rows, rule.end, rule.position))
        return cls(tuple(groups), torch.from_numpy(inverse), causal, rows, end, position)

    def to(self, device: torch.device | str) -> "Grouped":
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> "Grouped":
        return self._each(lambda x: x.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Grouped":
        groups = tuple(Group(change(g.queries), change(g.keys), change(g.lengths)) for g in self.groups)
        rows, end, position = map(change, (self.rows, self.end, self.position))
        return Grouped(groups, change(self.inverse), self.causal, rows, end, position)

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
        """query [1, H, Q, d], key and value [1, H_kv, T, d] -> [1, Q, H, d]."""
        # [rows, H, d]: a sequence is then a range of rows
        q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
        dtype = compute_dtype(v)  # a mask of another dtype SDPA would copy, and keep, in every layer
        outputs = []
        for number, group in enumerate(self.groups):
            q_g, k_g, v_g = _take(q, group.queries), _take(k, group.keys), _take(v, group.keys)
            windowed = window is not None and window < group.keys.shape[1]
            masked = windowed or softcap or not self.causal
            mask = self._mask(number, window if windowed else None, dtype) if masked else None
            if softcap and mask is not None:
                out = _softcapped(q_g, k_g, v_g, mask, softcap, scaling, dropout)
            else:
                out = _uncapped(q_g, k_g, v_g, mask, scaling, dropout)
            outputs.append(out.transpose(1, 2).flatten(0, 1))
        flat = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return flat.index_select(0, self.inverse).unsqueeze(0)

    def _mask(self, number: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """[n, 1, Q, K], to be added to the scores: 0 where a query of this group sees a key, else -inf."""
        if (number, window, dtype) not in self.masks:
            group = self.groups[number]
            i, j = self.rows[group.queries][:, :, None], group.keys[:, None, :]
            column = torch.arange(j.shape[2], device=j.device)
            seen = (j <= i) & (i < self.end[j]) & (column < group.lengths[:, None, None])
            if window is not None:
                seen &= self.position[i] - self.position[j] < window
            *shape, columns = seen.shape
            # rows of whole 16 bytes: a mask of others SDPA would copy, and keep, in every layer
            whole = torch.full((*shape, columns + -columns % 8), float("-inf"), dtype=dtype, device=seen.device)
            self.masks[number, window, dtype] = whole[..., :columns].masked_fill_(seen, 0.0)[:, None]
        return self.masks[number, window, dtype]


def _padded(start: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranges start..start+count-1 as the rows of a matrix, padded by their last number; and where it is no padding."""
    column = np.arange(count.max())
    return start[:, None] + np.minimum(column, count[:, None] - 1), column < count[:, None]


def _take(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[rows, H, d] -> [n, H, L, d]."""
    return x.index_select(0, rows.view(-1)).view(*rows.shape, *x.shape[1:]).transpose(1, 2)


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
    if query.is_cuda:  # whose kernel for masks and for float32 takes no fewer heads of keys
        key, value = _every_head(key, query.shape[1]), _every_head(value, query.shape[1])
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
        )


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
    return F.dropout(scores.float().softmax(-1).to(value.dtype), dropout) @ value
