"""Prefix trees: tokens that trajectories of one question share from the start are laid out, and computed, once.

Sorted by their tokens, trajectories stand so that each shares the most with its neighbours. Laid end to end in that
order, each without what it shares with the one before it, they are their prefix tree, depth first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """The prefix trees of n trajectories, U tokens in all: each trajectory's own tokens, those that it does not share
    with the one before it, after those of the one before."""

    order: np.ndarray  # [n] int64, the trajectories by their tokens
    paths: list[np.ndarray]  # for each of `order`, where its tokens stand: [L] int64, increasing, its own the last
    own: np.ndarray  # [n] int64, how many are its own: none where it is the beginning of the one before it
    input_ids: np.ndarray  # [U] int64
    position_ids: np.ndarray  # [U] int64, the depth in the tree


def lay_out(sequences: Sequence[np.ndarray]) -> TreeLayout:
    """The prefix trees of token sequences ([L] integers each), depth first."""
    order, shared = prefix_order(sequences)
    lengths = np.array([len(sequences[i]) for i in order], dtype=np.int64)
    own = lengths - shared
    total = int(own.sum())
    ids, position = np.empty(total, dtype=np.int64), np.empty(total, dtype=np.int64)
    path, paths, offset = np.zeros(0, dtype=np.int64), [], 0
    for i, depth, added in zip(order.tolist(), shared.tolist(), own.tolist(), strict=True):
        after = offset + added
        ids[offset:after] = sequences[i][depth:]
        position[offset:after] = np.arange(depth, depth + added)
        path = np.concatenate([path[:depth], np.arange(offset, after)])
        paths.append(path)
        offset = after
    return TreeLayout(order, paths, own, ids, position)


def prefix_order(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """`order` [n] sorts token sequences by their tokens: equal ones as they come, and one that is the beginning of
    others after them. `shared` [n] is how many tokens each has in common with the one before it, from the start."""
    # these bytes compare as the tokens do, and their end as a token above all others
    keys = [s.astype(">u4").tobytes() + b"\xff\xff\xff\xff" for s in sequences]
    order = sorted(range(len(sequences)), key=keys.__getitem__)
    ordered = [sequences[i] for i in order]
    shared = [0, *map(_common, ordered, ordered[1:])][: len(sequences)]
    return np.array(order, dtype=np.int64), np.array(shared, dtype=np.int64)


def _common(a: np.ndarray, b: np.ndarray) -> int:
    size = min(len(a), len(b))
    differ = a[:size] != b[:size]
    first = int(differ.argmax()) if size else 0
    return first if size and differ[first] else size


def cut_runs(lengths: np.ndarray, shared: np.ndarray, budget: int) -> tuple[list[int], list[int]]:
    """Cuts sorted sequences into as few runs as have at most `budget` tokens each, the largest as small as it can be.

    `lengths` [n] and `shared` [n] are in sorted order. Returns where each run starts and the tokens of its prefix
    tree: a run has the prefix that it shares with the run before it once more. Raises ValueError if one does not fit.
    """
    if lengths.max(initial=0) > budget:
        raise ValueError(f"a trajectory of {lengths.max()} tokens does not fit a budget of {budget}")
    added = np.cumsum(lengths - shared)

    def cut(limit: int) -> tuple[list[int], list[int]]:
        starts, sizes, start = [], [], 0
        while start < len(lengths):
            before = int(added[start] - lengths[start])  # the first of a run shares nothing
            end = int(np.searchsorted(added, before + limit, side="right"))
            starts.append(start)
            sizes.append(int(added[end - 1]) - before)
            start = end
        return starts, sizes

    runs = cut(budget)
    if len(runs[0]) == 1:
        return runs
    low, high = int(lengths.max()), max(runs[1])
    while low < high:  # a run never grows by losing a sequence, so the number of runs only falls with the limit
        middle = (low + high) // 2
        found = cut(middle)
        if len(found[0]) == len(runs[0]):
            runs, high = found, middle
        else:
            low = middle + 1
    return runs


def by_question(question: np.ndarray) -> list[np.ndarray]:
    """Positions [n] grouped by equal numbers, in the order given within a group."""
    order = np.argsort(question, kind="stable")
    cuts = np.flatnonzero(np.diff(question[order])) + 1
    return np.split(order, cuts) if len(order) else []
