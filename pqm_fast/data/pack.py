"""Micro-batches without padding: trajectories laid end to end within a fixed token budget."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class PackedBatch:
    """What crosses the border between data and model.

    Shapes: T tokens, S listed steps, B trajectories, G sequences. A sequence is a trajectory or, in a batch of prefix
    trees, a tree; sequence g owns tokens cu_seqlens[g]:cu_seqlens[g+1]. Tokens from cu_seqlens[G] on are padding,
    which no sequence sees. Trajectory b owns steps cu_steps[b]:cu_steps[b+1].
    """

    input_ids: torch.Tensor  # [T] int64
    position_ids: torch.Tensor  # [T] int64, from 0 within each trajectory
    cu_seqlens: torch.Tensor  # [G+1] int32
    lengths: tuple[int, ...]  # the same on the host: no synchronisation to plan attention
    step_index: torch.Tensor  # [S] int64, the row of each step's Q-value
    labels: torch.Tensor  # [S] float32, NaN where a step has no label (scoring only)
    cu_steps: torch.Tensor  # [B+1] int32
    members: tuple[int, ...]  # [B] which trajectory of the data set each one is
    # [T] int32 in a batch of prefix trees, else None: token j is seen by the tokens j..subtree_end[j]-1
    subtree_end: torch.Tensor | None = None

    @property
    def num_trajectories(self) -> int:
        return self.cu_steps.shape[0] - 1

    @property
    def num_steps(self) -> int:
        return self.step_index.shape[0]

    @property
    def num_tokens(self) -> int:
        """Real tokens, padding not counted."""
        return sum(self.lengths)

    def to(self, device: torch.device | str) -> "PackedBatch":
        moved: dict[str, Any] = {
            k: v.to(device, non_blocking=True) for k, v in vars(self).items() if torch.is_tensor(v)
        }
        return replace(self, **moved)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One encoded trajectory with its labels: input_ids [L], step_index [K], labels [K] float32 (NaN: none)."""

    input_ids: np.ndarray
    step_index: np.ndarray
    labels: np.ndarray


def pack(
    trajectories: Iterable[tuple[int, Trajectory]], *, pad_to: int | None = None, labelled_only: bool = True
) -> PackedBatch:
    """Lays `(number, trajectory)` pairs end to end.

    `pad_to` fills the token axis up to a fixed size, so that every batch has the same shape. `labelled_only` leaves
    out steps without a label (training); otherwise every step is listed (scoring).
    """
    ids, positions, rows, labels, lengths, counts, members = [], [], [], [], [], [], []
    offset = 0
    for number, t in trajectories:
        keep = ~np.isnan(t.labels) if labelled_only else np.ones(len(t.labels), dtype=bool)
        ids.append(t.input_ids)
        positions.append(np.arange(len(t.input_ids)))
        rows.append(t.step_index[keep].astype(np.int64) + offset)
        labels.append(t.labels[keep])
        lengths.append(len(t.input_ids))
        counts.append(int(keep.sum()))
        members.append(int(number))
        offset += len(t.input_ids)
    if pad_to is not None:
        if offset > pad_to:
            raise ValueError(f"{offset} tokens do not fit a batch of {pad_to}")
        ids.append(np.zeros(pad_to - offset, dtype=np.int64))
        positions.append(np.zeros(pad_to - offset, dtype=np.int64))

    def flat(parts: list[np.ndarray], dtype: type) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False))

    def cumulative(sizes: list[int]) -> torch.Tensor:
        return torch.from_numpy(np.cumsum([0, *sizes]).astype(np.int32))

    return PackedBatch(
        input_ids=flat(ids, np.int64),
        position_ids=flat(positions, np.int64),
        cu_seqlens=cumulative(lengths),
        lengths=tuple(lengths),
        step_index=flat(rows, np.int64),
        labels=flat(labels, np.float32),
        cu_steps=cumulative(counts),
        members=tuple(members),
    )


def plan_batches(
    lengths: np.ndarray,
    budget: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    window: int = 8192,
    shuffle: bool = True,
) -> list[np.ndarray]:
    """Groups trajectories into micro-batches of at most `budget` tokens, window by window of a shuffled epoch.

    Within a window the longest goes first, into the emptiest batch. First-fit decreasing fills batches as well, but
    puts trajectories of like length together; a mean over trajectories would then weight those in the batches of
    long ones several times more. Deterministic from (seed, epoch); each trajectory is in exactly one batch.
    `shuffle=False` keeps the order of the data between windows (scoring). Raises ValueError if one does not fit.
    """
    lengths = np.asarray(lengths)
    if len(lengths) and lengths.max() > budget:
        raise ValueError(f"a trajectory of {lengths.max()} tokens does not fit a budget of {budget}")
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths)) if shuffle else np.arange(len(lengths))
    batches: list[np.ndarray] = []
    held = order[:0]  # what did not fill a whole batch goes into the next window
    for start in range(0, len(order), window):
        pool = np.concatenate([held, order[start : start + window]])
        total = np.cumsum(lengths[pool])
        if start + window < len(order):
            whole = int(total[-1]) // budget
            taken = int(np.searchsorted(total, whole * budget, side="right"))
        else:
            whole, taken = -(-int(total[-1]) // budget), len(pool)
        bins, left = _longest_into_emptiest(pool[:taken], lengths, budget, whole)
        held = np.concatenate([left, pool[taken:]])
        batches += [bins[i] for i in rng.permutation(len(bins))] if shuffle else bins
    while len(held):  # rounding can leave a few over at the very end
        bins, held = _longest_into_emptiest(held, lengths, budget, -(-int(lengths[held].sum()) // budget))
        batches += bins
    return batches


def _longest_into_emptiest(
    items: np.ndarray, lengths: np.ndarray, budget: int, count: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Spreads items over `count` bins. Returns the bins and the items that found no room."""
    emptiest = [(0, b) for b in range(count)]
    members: list[list[int]] = [[] for _ in range(count)]
    left = []
    for item in items[np.argsort(-lengths[items], kind="stable")]:
        used, b = emptiest[0] if emptiest else (budget, -1)
        if used + lengths[item] > budget:
            left.append(item)
            continue
        members[b].append(item)
        heapq.heapreplace(emptiest, (used + int(lengths[item]), b))
    return [np.array(m) for m in members if m], np.array(left, dtype=items.dtype)
