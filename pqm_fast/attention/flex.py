"""Attention through FlexAttention: one kernel for any packing, with blocks that nobody sees left out. For CUDA; the
CPU runs it uncompiled and forward only, for tests."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from pqm_fast.attention.rule import Rule

BLOCK = 128
_compiled = torch.compile(flex_attention)


class Blocks(NamedTuple):
    """For each block of queries: how many blocks of keys it sees in part, and which (these come first); likewise those
    that it sees whole, which need no mask. [1, 1, query blocks(, key blocks)] int32, as BlockMask has them."""

    partial_count: torch.Tensor
    partial: torch.Tensor
    full_count: torch.Tensor
    full: torch.Tensor

    @classmethod
    def of(cls, partial: np.ndarray, full: np.ndarray) -> "Blocks":
        """[query blocks, key blocks] bool."""
        lists = [(x.sum(1), np.argsort(~x, axis=1, kind="stable")) for x in (partial, full)]
        return cls(*(_int32(x)[None, None] for pair in lists for x in pair))


@dataclass(frozen=True)
class Flex:
    """The rule as ranges: rows are in order, so token j is seen by the queries first[j]..after[j]-1."""

    first: torch.Tensor  # [T] int32
    after: torch.Tensor  # [T] int32
    query_position: torch.Tensor  # [Q] int32
    key_position: torch.Tensor  # [T] int32
    blocks: dict[int | None, Blocks]  # by sliding window
    masks: dict[int | None, BlockMask] | None = None  # made on the device: they do not travel between processes

    @classmethod
    def of(cls, rule: Rule, windows: tuple[int | None, ...]) -> "Flex":
        first, after = np.searchsorted(rule.rows, [np.arange(len(rule.end)), rule.end])
        queries, keys = rule.position[rule.rows], rule.position
        blocks = {w: Blocks.of(*_blocks(first, after, queries, keys, w)) for w in windows}
        return cls(_int32(first), _int32(after), _int32(queries), _int32(keys), blocks)

    def to(self, device: torch.device | str) -> "Flex":
        def move(x: torch.Tensor) -> torch.Tensor:
            return x.to(device, non_blocking=True)

        first, after, queries, keys = map(move, (self.first, self.after, self.query_position, self.key_position))
        blocks = {window: Blocks(*map(move, listed)) for window, listed in self.blocks.items()}
        masks = {
            window: BlockMask.from_kv_blocks(
                listed.partial_count,
                listed.partial,
                listed.full_count,
                listed.full,
                BLOCK_SIZE=BLOCK,
                mask_mod=_seen(first, after, queries, keys, window),
                seq_lengths=(len(queries), len(keys)),
            )
            for window, listed in blocks.items()
        }
        return Flex(first, after, queries, keys, blocks, masks)

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
        if dropout:
            raise ValueError("FlexAttention has no dropout: set attention_dropout to 0 in the model's config.json")
        if self.masks is None or window not in self.masks:
            raise ValueError(f"no block mask for a window of {window}; there are masks for {list(self.masks or ())}")
        # under autocast, rotary embeddings leave queries and keys in float32
        out = (_compiled if query.is_cuda else flex_attention)(
            query.to(value.dtype),
            key.to(value.dtype),
            value,
            score_mod=_capped(softcap) if softcap else None,
            block_mask=self.masks[window],
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out.transpose(1, 2)


def _seen(
    first: torch.Tensor, after: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor, window: int | None
) -> Callable:
    def on_path(b, h, q, kv):
        return (first[kv] <= q) & (q < after[kv])

    if window is None:
        return on_path
    limit = window

    def within_window(b, h, q, kv):
        return (first[kv] <= q) & (q < after[kv]) & (queries[q] - keys[kv] < limit)

    return within_window


def _capped(softcap: float) -> Callable:
    def cap(score, b, h, q, kv):
        return softcap * torch.tanh(score / softcap)

    return cap


def _blocks(
    first: np.ndarray, after: np.ndarray, queries: np.ndarray, keys: np.ndarray, window: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """[query blocks, key blocks] bool: seen in part, and whole. In time O(T + blocks), not O(Q T).

    Exact without a window; with one, a block near its edge may be taken for partial that is whole or unseen.
    """
    shape = -(-len(queries) // BLOCK), -(-len(keys) // BLOCK)
    reached = _count(first // BLOCK, -(-after // BLOCK), first < after, shape)
    covered = _count(-(-first // BLOCK), after // BLOCK, first < after, shape)
    some, whole = reached > 0, covered == BLOCK
    if window is not None:
        q_low, q_high = _extremes(queries)
        k_low, k_high = _extremes(keys)
        some &= q_low[:, None] - k_high < window
        whole &= q_high[:, None] - k_low < window
    return some & ~whole, whole


def _count(start: np.ndarray, stop: np.ndarray, where: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """How many tokens of each key block have a query block in start..stop-1."""
    change = np.zeros((shape[0] + 1, shape[1]), dtype=np.int64)
    column = np.arange(len(start)) // BLOCK
    where = where & (start < stop)
    np.add.at(change, (start[where], column[where]), 1)
    np.add.at(change, (stop[where], column[where]), -1)
    return change.cumsum(0)[:-1]


def _extremes(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest position of each block."""
    starts = np.arange(0, len(positions), BLOCK)
    return np.minimum.reduceat(positions, starts), np.maximum.reduceat(positions, starts)


def _int32(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.astype(np.int32))
