"""Says which tokens see which, on the host. Every backend is planned from this one rule."""

from dataclasses import dataclass

import numpy as np

from pqm_fast.data.pack import PackedBatch

LONGEST_PADDING = 128  # tokens of a padding sequence in a batch that holds nothing but padding


@dataclass(frozen=True)
class AttentionPaths:
    """The path of rows that each sequence of a batch sees.

    The rows of a batch are the queries of its G sequences, one sequence after the other. The path of a sequence (its
    keys) ends with its own rows: the i-th query from the end sees all keys but the last i or, under a sliding window,
    the last `window` of these.

    Padding forms sequences too, none longer than the longest real one, so that every row is computed: what a kernel
    leaves unwritten may be NaN, and NaN times a gradient of 0 is NaN in the gradient of every weight.
    """

    queries: np.ndarray  # [G] int64, the number of queries of each sequence
    keys: np.ndarray  # [G] int64, the number of keys
    rows: np.ndarray | None  # [sum of keys] int64, path after path; None if each sequence sees only its own rows

    @classmethod
    def of(cls, batch: PackedBatch) -> "AttentionPaths":
        """Raises ValueError for a batch without rows."""
        total, real = batch.input_ids.shape[0], batch.num_tokens
        if not total:
            raise ValueError("a batch without a row was given; pack it with pad_to")
        longest = max(batch.lengths, default=LONGEST_PADDING)
        padding = np.diff([*range(real, total, longest), total])
        queries = np.concatenate([np.array(batch.lengths, dtype=np.int64), padding])
        if batch.paths is None:
            return cls(queries, queries, None)
        keys = np.concatenate([np.array(batch.path_lengths, dtype=np.int64), padding])
        return cls(queries, keys, np.concatenate([batch.paths.cpu().numpy(), np.arange(real, total)]))
