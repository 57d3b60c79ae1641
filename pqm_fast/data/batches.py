"""Which trajectories share a micro-batch, within its budget of tokens."""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pqm_fast.data.tree import by_question, cut_runs, prefix_order


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
