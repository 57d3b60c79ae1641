"""Trajectories padded on the right to the longest of their batch.

They need no mask: attention is causal, so that no token sees padding, and no loss reads it. This is exact, and lets
attention use the flash kernels, which take no mask.
"""

from collections.abc import Sequence

import numpy as np

from pqm_benchmarks.work.flops import RowCounts
from pqm_fast.data.trajectory import Trajectory

IGNORED = -100


def token_ids(batch: Sequence[Trajectory]) -> np.ndarray:
    """[B, L] int64, 0 in padding."""
    return stack([t.input_ids for t in batch], 0)


def stack(rows: Sequence[np.ndarray], padding: int) -> np.ndarray:
    """[B, longest] int64."""
    out = np.full((len(rows), max(map(len, rows))), padding, dtype=np.int64)
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = row
    return out


def padded_rows(batches: Sequence[Sequence[Trajectory]], values: int) -> RowCounts:
    """Counts the rows of padded batches, with `values` scores for each token."""
    width = np.concatenate([np.full(len(b), max(len(t.input_ids) for t in b)) for b in batches])
    tokens, pairs = int(width.sum()), int((width * (width + 1) // 2).sum())
    return RowCounts(tokens, pairs, tokens, values * tokens)
