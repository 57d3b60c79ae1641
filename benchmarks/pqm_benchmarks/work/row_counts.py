"""The rows and attention pairs that each way computes for the workload."""

from dataclasses import dataclass

import numpy as np

from pqm_benchmarks.shared.prefix_tree import count_prefixes
from pqm_benchmarks.shared.workload import Questions, flat, published_batches
from pqm_benchmarks.work.flops import RowCounts

WAYS = {
    "reference": "published",
    "packed": "plain packing",
    "tree": "tree",
    "tree_step_rows": "tree + step rows",
}
TILE = 128, 64  # queries and keys that attention kernels take at a time


def count_rows(questions: Questions, seed: int) -> dict[str, RowCounts]:
    """The counts of each way in WAYS. A tree holds all solutions of one question, whatever the token budget."""
    trajectories = flat(questions)
    lengths = np.array([len(t.input_ids) for t in trajectories])
    steps = sum(len(t.step_tokens) for t in trajectories)
    widths = np.concatenate([np.full(len(b), lengths[b].max()) for b in published_batches(lengths, seed)])
    padded = int(widths.sum())
    total, pairs = int(lengths.sum()), _causal_pairs(lengths)
    counts = [count_prefixes(solutions) for solutions in questions]
    prefixes, tree_pairs, step_ends = (sum(column) for column in zip(*counts, strict=True))
    return {
        # flash-attn, with which the published trainer loads its models, leaves padding out of attention
        "reference": RowCounts(padded, pairs, padded, padded, logits=True, recomputes=True),
        "packed": RowCounts(total, pairs, total, steps),
        "tree": RowCounts(prefixes, tree_pairs, prefixes, steps),
        "tree_step_rows": RowCounts(prefixes, tree_pairs, step_ends, steps),
    }


def _causal_pairs(lengths: np.ndarray) -> int:
    """Half a square for each sequence, the diagonal included."""
    return int((lengths * (lengths + 1) // 2).sum())


@dataclass(frozen=True)
class AttentionWork:
    """The work of the attention kernels of one layer, for the whole workload."""

    sequences: int
    """Runs of queries, each with the keys of its path."""
    pairs: int
    """Pairs (token, token that it sees)."""
    computed_pairs: int
    """Pairs in all tiles that hold at least one needed pair."""
    gathered: int
    """Tokens whose key and value are copied."""


def attention_work(questions: Questions) -> dict[str, AttentionWork]:
    """Counts the work for plain packing ("packed") and for the trees of `pqm_fast.data.tree` ("tree")."""
    from pqm_fast.data.tree import prefix_order

    lengths = np.array([len(t.input_ids) for t in flat(questions)])
    tree_queries, tree_keys = [], []
    for solutions in questions:
        order, shared = prefix_order([t.input_ids for t in solutions])
        path_lengths = np.array([len(solutions[i].input_ids) for i in order])
        adds = path_lengths > shared
        tree_queries.append((path_lengths - shared)[adds])
        tree_keys.append(path_lengths[adds])
    ways = {"packed": (lengths, lengths), "tree": (np.concatenate(tree_queries), np.concatenate(tree_keys))}
    return {
        way: AttentionWork(
            sequences=len(queries),
            pairs=int((queries * (2 * keys - queries + 1) // 2).sum()),
            computed_pairs=int(sum(map(_pairs_in_tiles, queries.tolist(), keys.tolist()))),
            gathered=int(keys.sum()) if way == "tree" else 0,
        )
        for way, (queries, keys) in ways.items()
    }


def _pairs_in_tiles(queries: int, keys: int) -> int:
    """Pairs in the tiles that one sequence computes: whole tiles, up to the last key that a tile's last query sees."""
    rows, columns = TILE
    last = np.minimum(np.arange(0, queries, rows) + rows, queries) + keys - queries
    return rows * columns * int((-(-last // columns)).sum())
