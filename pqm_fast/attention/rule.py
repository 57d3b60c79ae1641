"""The one rule of who sees whom, on the host."""

from dataclasses import dataclass

import numpy as np

from pqm_fast.data.pack import PackedBatch


@dataclass(frozen=True)
class Rule:
    """Token row i of `rows` sees token j if and only if j <= i < end[j].

    Under a sliding window also position[i] - position[j] < window: the distance along the path, which in a tree is
    not the distance between rows.
    """

    rows: np.ndarray  # [Q] int64, in order: the token rows that attend
    end: np.ndarray  # [T] int64
    position: np.ndarray  # [T] int64

    @classmethod
    def of(cls, batch: PackedBatch) -> "Rule":
        """Every token attends. A token of the padding sees itself only."""
        tokens = np.arange(batch.input_ids.shape[0])
        if batch.subtree_end is not None:
            end = batch.subtree_end.cpu().numpy().astype(np.int64)
        else:
            end = tokens + 1
            lengths = np.array(batch.lengths, dtype=np.int64)
            end[: lengths.sum()] = np.repeat(np.cumsum(lengths), lengths)
        return cls(tokens, end, batch.position_ids.cpu().numpy())
