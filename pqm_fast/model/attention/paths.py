"""Who sees whom, on the host: the one plan that every way of computing attention is made from."""

from dataclasses import dataclass

import numpy as np

from pqm_fast.data.pack import PackedBatch

MOST_PADDING = 128  # tokens of a sequence of padding, where there is nothing but padding


@dataclass(frozen=True)
class Paths:
    """The rows of a batch are the queries of its sequences, one sequence after the other. Each sees a path of rows, of
    which the last are its own: its i-th query from the end sees all keys but the last i, or under a sliding window the
    last `window` of these.

    Padding is sequences of its own, none longer than the longest, so that every row is computed: what a kernel leaves
    unwritten may be NaN, and NaN times a gradient of 0 is NaN in the gradient of every weight.
    """

    queries: np.ndarray  # [G] int64, how many each sequence has
    keys: np.ndarray  # [G] int64
    rows: np.ndarray | None  # [sum of keys] int64, path after path; None if each is the sequence's own rows alone

    @classmethod
    def of(cls, batch: PackedBatch) -> "Paths":
        total, real = batch.input_ids.shape[0], batch.num_tokens
        if not total:
            raise ValueError("a batch without a row was given; pack it with pad_to")
        longest = max(batch.lengths, default=MOST_PADDING)
        padding = np.diff([*range(real, total, longest), total])
        queries = np.concatenate([np.array(batch.lengths, dtype=np.int64), padding])
        if batch.paths is None:
            return cls(queries, queries, None)
        keys = np.concatenate([np.array(batch.path_lengths, dtype=np.int64), padding])
        return cls(queries, keys, np.concatenate([batch.paths.cpu().numpy(), np.arange(real, total)]))
