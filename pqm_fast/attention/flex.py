"""Attention through FlexAttention: one kernel for any packing, with blocks that nobody sees left out. For CUDA; the
CPU runs it uncompiled and forward only, for tests.

It is compiled once for all batches, layers and windows: what differs between them is in tensors, and no size is 1 or
assumed to equal another, for which torch.compile would make a kernel of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch.fx.experimental import _config as shape_config
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from pqm_fast.attention.precision import compute_dtype
from pqm_fast.attention.rule import Rule

BLOCK = 128
ROWS = 2 * BLOCK  # where only some rows attend they are padded to a multiple of BLOCK, and to this at least
NO_WINDOW = 2**31 - 1
# with and without gradients, sizes of whole blocks or not, dtypes: a few. More would be a mistake here, and then
# torch.compile by itself would go on without a kernel, computing every score.
RECOMPILE_LIMIT = 16


class Blocks(NamedTuple):
    """For each block of queries: how many blocks of keys it sees in part, and which (these come first); likewise those
    that it sees whole, which need no mask. [1, 1, query blocks(, key blocks)] int32, as BlockMask has them."""

    partial_count: torch.Tensor
    partial: torch.Tensor
    full_count: torch.Tensor
    full: torch.Tensor

    @classmethod
    def of(cls, partial: np.ndarray, full: np.ndarray) -> "Blocks":
        """[query blocks, key blocks] bool, to which empty blocks are added if there is only one."""
        missing = [(0, max(0, 2 - n)) for n in partial.shape]
        partial, full = np.pad(partial, missing), np.pad(full, missing)
        lists = [(x.sum(1), np.argsort(~x, axis=1, kind="stable")) for x in (partial, full)]
        return cls(*(_int32(x)[None, None] for pair in lists for x in pair))


@dataclass(eq=False)  # not frozen: see Packing
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
        moved = self._each(lambda x: x.to(device, non_blocking=True))
        return replace(moved, masks={window: moved._mask(window) for window in moved.blocks})

    def pin_memory(self) -> "Flex":
        return self._each(lambda x: x.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Flex":
        blocks = {window: Blocks(*map(change, listed)) for window, listed in self.blocks.items()}
        first, after, queries, keys = map(change, (self.first, self.after, self.query_position, self.key_position))
        return Flex(first, after, queries, keys, blocks)

    def _mask(self, window: int | None) -> BlockMask:
        return BlockMask.from_kv_blocks(
            *self.blocks[window],
            BLOCK_SIZE=BLOCK,
            mask_mod=_seen(
                self.first,
                self.after,
                self.query_position,
                self.key_position,
                _scalar(NO_WINDOW if window is None else window, torch.int32, self.first.device),
            ),
            seq_lengths=(len(self.query_position), len(self.key_position)),
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
        """query [1, H, Q, d], key and value [1, H_kv, T, d] -> [1, Q, H, d]."""
        if dropout:
            raise ValueError("FlexAttention has no dropout: set attention_dropout to 0 in the model's config.json")
        if self.masks is None or window not in self.masks:
            raise ValueError(f"no block mask for a window of {window}; there are masks for {list(self.masks or ())}")
        dtype = compute_dtype(value)
        score_mod = _capped(_scalar(softcap, torch.float32, value.device)) if softcap else None
        attention = run_compiled if query.is_cuda else _attention
        out = attention(query.to(dtype), key.to(dtype), value.to(dtype), self.masks[window], score_mod, scaling)
        return out.transpose(1, 2)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: BlockMask,
    score_mod: Callable | None,
    scale: float | None,
) -> torch.Tensor:
    # sizes of which the compiler is to know more, where it takes all as variables
    torch._check(mask.BLOCK_SIZE == (BLOCK, BLOCK))
    torch._check(mask.seq_lengths == (query.shape[2], key.shape[2]))
    whole = query.shape[2] % BLOCK == 0 and key.shape[2] % BLOCK == 0
    return flex_attention(
        query,
        key,
        value,
        score_mod=score_mod,
        block_mask=mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options={"IS_DIVISIBLE": True} if whole else None,  # type: ignore[arg-type]  # no bounds checks
    )


_compiled = torch.compile(_attention, dynamic=True)


def run_compiled(*inputs) -> torch.Tensor:
    """`_attention` compiled. Raises torch._dynamo.exc.FailOnRecompileLimitHit rather than go on without a kernel."""
    with (
        torch._dynamo.config.patch(
            recompile_limit=RECOMPILE_LIMIT,
            fail_on_recompile_limit_hit=True,
            specialize_float=True,  # the scale is a constant of the kernel
        ),
        shape_config.patch(use_duck_shape=False),  # type: ignore[attr-defined]
    ):
        return _compiled(*inputs)


def _seen(
    first: torch.Tensor, after: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor, window: torch.Tensor
) -> Callable:
    def seen(b, h, q, kv):
        return (first[kv] <= q) & (q < after[kv]) & (queries[q] - keys[kv] < window)

    return seen


def _capped(softcap: torch.Tensor) -> Callable:
    def cap(score, b, h, q, kv):
        return softcap * torch.tanh(score / softcap)

    return cap


def _scalar(value: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.full((), value, dtype=dtype, device=device)  # filled on the device: nothing waits for a copy


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
