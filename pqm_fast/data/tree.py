"""Prefix trees: tokens that trajectories of one question share from the start are laid out, and computed, once.

Trajectories sorted by their tokens share most with their neighbours. Laid end to end in that order, each without the
prefix that it shares with the one before it, they form their prefix tree in depth-first order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """The prefix trees of n trajectories, with U tokens in all. The suffix of a trajectory is what it does not
    share with the one before it. The suffixes are laid end to end."""

    order: np.ndarray  # [n] int64, the trajectories sorted by their tokens
    paths: list[np.ndarray]  # for each of `order`, the rows of its tokens: [L] int64, increasing, its suffix last
    suffix_lengths: np.ndarray  # [n] int64; 0 for a trajectory that is a prefix of the one before it
    input_ids: np.ndarray  # [U] int64
    position_ids: np.ndarray  # [U] int64, the depth in the tree


def lay_out(sequences: Sequence[np.ndarray]) -> TreeLayout:
    """The prefix trees of token sequences ([L] integers each), in depth-first order."""
    order, shared = prefix_order(sequences)
    lengths = np.array([len(sequences[i]) for i in order], dtype=np.int64)
    suffix_lengths = lengths - shared
    total = int(suffix_lengths.sum())
    ids, position = np.empty(total, dtype=np.int64), np.empty(total, dtype=np.int64)
    path, paths, offset = np.zeros(0, dtype=np.int64), [], 0
    for i, depth, suffix_length in zip(order.tolist(), shared.tolist(), suffix_lengths.tolist(), strict=True):
        end = offset + suffix_length
        ids[offset:end] = sequences[i][depth:]
        position[offset:end] = np.arange(depth, depth + suffix_length)
        path = np.concatenate([path[:depth], np.arange(offset, end)])
        paths.append(path)
        offset = end
    return TreeLayout(order, paths, suffix_lengths, ids, position)


def laid_apart(tree: TreeLayout) -> TreeLayout:
    """The trajectories of `tree` in its order, laid end to end: each has all its tokens as rows of its own."""
    lengths = np.array([len(path) for path in tree.paths], dtype=np.int64)
    rows = np.concatenate([np.zeros(0, np.int64), *tree.paths])
    paths = np.split(np.arange(len(rows)), np.cumsum(lengths)[:-1]) if len(lengths) else []
    return TreeLayout(tree.order, paths, lengths, tree.input_ids[rows], tree.position_ids[rows])


def prefix_order(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(order [n] int64, shared [n] int64) of token sequences ([L] integers each).

    `order` sorts them by their tokens. Equal sequences keep their order, and a sequence that is a prefix of others
    comes after them. `shared` is the length of the prefix that each has in common with the one before it.
    """
    # these bytes compare like the tokens, and the end of a sequence like a token above all others
    keys = [s.astype(">u4").tobytes() + b"\xff\xff\xff\xff" for s in sequences]
    order = sorted(range(len(sequences)), key=keys.__getitem__)
    ordered = [sequences[i] for i in order]
    shared = [0, *map(_shared_length, ordered, ordered[1:])][: len(sequences)]
    return np.array(order, dtype=np.int64), np.array(shared, dtype=np.int64)


def _shared_length(a: np.ndarray, b: np.ndarray) -> int:
    size = min(len(a), len(b))
    differ = a[:size] != b[:size]
    first = int(differ.argmax()) if size else 0
    return first if size and differ[first] else size


def split_tree(lengths: np.ndarray, shared: np.ndarray, budget: int) -> tuple[list[int], list[int]]:
    """Splits sorted sequences into as few runs as have at most `budget` tokens each, the largest run as small as
    possible.

    `lengths` [n] and `shared` [n] are in sorted order, `shared` as in `prefix_order`. Returns the index at which each
    run starts, and the tokens of its prefix tree, which repeats the prefix that the run shares with the one before it.
    Raises ValueError if a single sequence exceeds the budget.
    """
    if lengths.max(initial=0) > budget:
        raise ValueError(f"a trajectory of {lengths.max()} tokens does not fit a budget of {budget}")
    tree_size = np.cumsum(lengths - shared)

    def split(limit: int) -> tuple[list[int], list[int]]:
        starts, sizes, start = [], [], 0
        while start < len(lengths):
            tokens_before = int(tree_size[start] - lengths[start])  # the first sequence of a run shares nothing
            end = int(np.searchsorted(tree_size, tokens_before + limit, side="right"))
            starts.append(start)
            sizes.append(int(tree_size[end - 1]) - tokens_before)
            start = end
        return starts, sizes

    runs = split(budget)
    if len(runs[0]) == 1:
        return runs
    low, high = int(lengths.max()), max(runs[1])
    while low < high:  # a run never grows by losing a sequence, so a higher limit never needs more runs
        middle = (low + high) // 2
        smaller_runs = split(middle)
        if len(smaller_runs[0]) == len(runs[0]):
            runs, high = smaller_runs, middle
        else:
            low = middle + 1
    return runs
