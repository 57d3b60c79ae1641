"""Micro-batches without padding: trajectories laid end to end within a fixed token budget."""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pqm_fast.data.tree import by_question, cut_runs, lay_out, prefix_order


@dataclass(frozen=True)
class PackedBatch:
    """What crosses the border between data and model.

    Shapes: T tokens, S listed steps, B trajectories, G sequences. A sequence is a trajectory or, in a batch of prefix
    trees, the tokens that a trajectory does not share with the one before it; a trajectory that shares all of them has
    no sequence. Sequences stand end to end from row 0 on. Each sees a path of rows, its whole trajectory. The rows
    behind the last sequence are padding. Trajectory b owns steps cu_steps[b]:cu_steps[b+1].
    """

    input_ids: torch.Tensor  # [T] int64
    position_ids: torch.Tensor  # [T] int64, from 0 within each trajectory (its depth in a tree)
    lengths: tuple[int, ...]  # [G] rows of each sequence
    step_index: torch.Tensor  # [S] int64, the row of each step's Q-value
    labels: torch.Tensor  # [S] float32, NaN where a step has no label (scoring only)
    cu_steps: torch.Tensor  # [B+1] int32
    members: tuple[int, ...]  # [B] which trajectory of the data set each one is
    path_lengths: tuple[int, ...]  # [G] rows of each path
    # [sum of path_lengths] int64 on the host, path after path; None if each is its sequence's own rows
    paths: torch.Tensor | None = None

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
            k: v.to(device, non_blocking=True)
            for k, v in vars(self).items()
            if torch.is_tensor(v) and k != "paths"  # which only a plan reads, on the host
        }
        return replace(self, **moved)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One encoded trajectory with its labels: input_ids [L], step_index [K], labels [K] float32 (NaN: none)."""

    input_ids: np.ndarray
    step_index: np.ndarray
    labels: np.ndarray


def pack(
    trajectories: Iterable[tuple[int, Trajectory]],
    *,
    question: np.ndarray | None = None,
    pad_to: int | None = None,
    labelled_only: bool = True,
) -> PackedBatch:
    """Lays `(number, trajectory)` pairs end to end, or with `question` [B] in prefix trees over those of equal number.

    `pad_to` fills the token axis up to a fixed size, so that every batch has the same shape. `labelled_only` leaves
    out steps without a label (training); otherwise every step is listed (scoring).
    """
    pairs = list(trajectories)
    groups = [[pair] for pair in pairs]
    if question is not None:
        groups = [[pairs[i] for i in group] for group in by_question(question)]
    return pack_trees(groups, pad_to=pad_to, labelled_only=labelled_only)


def pack_trees(
    groups: Iterable[Sequence[tuple[int, Trajectory]]], *, pad_to: int | None = None, labelled_only: bool = True
) -> PackedBatch:
    """Lays `(number, trajectory)` pairs out in prefix trees: what those of a group share stands there once.

    The trajectories of a group follow each other in the order of their tokens. One row may serve steps of several:
    `step_index` then has duplicates. `pad_to` and `labelled_only` as in `pack`.
    """
    ids, positions, paths, rows, labels, counts, members = [], [], [], [], [], [], []
    lengths, path_lengths = [], []
    offset = 0
    for group in groups:
        layout = lay_out([t.input_ids for _, t in group])
        ids.append(layout.input_ids)
        positions.append(layout.position_ids)
        for i, path, own in zip(layout.order, layout.paths, layout.own.tolist(), strict=True):
            number, t = group[i]
            if own:
                lengths.append(own)
                path_lengths.append(len(path))
                paths.append(path + offset)
            keep = ~np.isnan(t.labels) if labelled_only else np.ones(len(t.labels), dtype=bool)
            rows.append(path[t.step_index[keep]] + offset)
            labels.append(t.labels[keep])
            counts.append(int(keep.sum()))
            members.append(int(number))
        offset += len(layout.input_ids)
    if pad_to is not None:
        if offset > pad_to:
            raise ValueError(f"{offset} tokens do not fit a batch of {pad_to}")
        ids.append(np.zeros(pad_to - offset, dtype=np.int64))
        positions.append(np.zeros(pad_to - offset, dtype=np.int64))

    def flat(parts: list[np.ndarray], dtype: type) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False))

    return PackedBatch(
        input_ids=flat(ids, np.int64),
        position_ids=flat(positions, np.int64),
        lengths=tuple(lengths),
        step_index=flat(rows, np.int64),
        labels=flat(labels, np.float32),
        cu_steps=torch.from_numpy(np.cumsum([0, *counts]).astype(np.int32)),
        members=tuple(members),
        path_lengths=tuple(path_lengths),
        paths=flat(paths, np.int64) if lengths != path_lengths else None,
    )


@dataclass(frozen=True)
class Units:
    """Trajectories in units that go into one batch as a whole: one trajectory, or those of a prefix tree."""

    members: np.ndarray  # [N] numbers of trajectories, unit after unit
    ends: np.ndarray  # [U] where each unit ends among them
    sizes: np.ndarray  # [U] tokens to compute

    @classmethod
    def alone(cls, members: np.ndarray, lengths: np.ndarray) -> "Units":
        """Each trajectory by itself; `lengths` [N] in tokens."""
        return cls(members, np.arange(1, len(members) + 1), lengths)

    @classmethod
    def trees(
        cls, members: np.ndarray, question: np.ndarray, tokens: Callable[[int], np.ndarray], budget: int
    ) -> "Units":
        """The trajectories of one question together (`question` [N] has equal numbers for them), or as few runs of
        their prefix tree as fit the budget. `tokens` gives the tokens of a trajectory by its number."""
        ordered, starts, sizes, offset = [members[:0]], [], [], 0
        for positions in by_question(question):
            group = members[positions]
            sequences = [tokens(i) for i in group.tolist()]
            order, shared = prefix_order(sequences)
            lengths = np.array([len(s) for s in sequences], dtype=np.int64)[order]
            cuts, own = cut_runs(lengths, shared, budget)
            ordered.append(group[order])
            starts += [offset + cut for cut in cuts]
            sizes += own
            offset += len(group)
        ends = np.array([*starts[1:], offset][: len(starts)], dtype=np.int64)
        return cls(np.concatenate(ordered), ends, np.array(sizes, dtype=np.int64))

    def batches(self, budget: int, **how: Any) -> list[np.ndarray]:
        """Numbers of the trajectories of each batch; `how` as in `plan_batches`."""
        counts = np.diff(self.ends, prepend=0)

        def of(units: np.ndarray) -> np.ndarray:
            own = counts[units]
            return self.members[np.repeat(self.ends[units] - np.cumsum(own), own) + np.arange(own.sum())]

        return [of(units) for units in plan_batches(self.sizes, budget, **how)]

    def in_order(self, budget: int) -> Iterator[np.ndarray]:
        """The same in batches that keep the order: what comes first is done first. Each unit must fit."""
        starts = np.concatenate([[0], self.ends])[:-1]
        cuts, used = [], 0
        for start, size in zip(starts.tolist(), self.sizes.tolist(), strict=True):
            if used and used + size > budget:
                cuts.append(start)
                used = 0
            used += size
        if len(self.members):
            yield from np.split(self.members, cuts)


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
    `shuffle=False` keeps the order of the data between windows (evaluation during training). Raises
    ValueError if one does not fit.
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
        while len(held) and start + window >= len(order):  # rounding can leave a few over at the very end
            more, held = _longest_into_emptiest(held, lengths, budget, -(-int(lengths[held].sum()) // budget))
            bins += more
        batches += [bins[i] for i in rng.permutation(len(bins))] if shuffle else bins
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
