"""Packed batches built the slow way, with which tokens see which, and attention by that definition."""

from dataclasses import replace
from functools import cache

import numpy as np
import torch

from pqm_fast.data.pack import PackedBatch


def forest(sequences, pad=0, step_tokens=()):
    """The prefix trees of token sequences, built the slow way: rows are prefixes in depth-first order. Also returns
    which rows see which, [T, T] bool: a prefix sees its own prefixes."""
    rows = sorted({tuple(s[:n]) for s in sequences for n in range(1, len(s) + 1)})
    sees = np.array([[a[: len(b)] == b for b in rows] for a in rows]).reshape(len(rows), len(rows))
    total = len(rows) + pad
    everyone = np.eye(total, dtype=bool)
    everyone[: len(rows), : len(rows)] = sees
    ends = np.flatnonzero(sees.sum(0) == 1)  # seen only by themselves
    paths = [np.flatnonzero(sees[end]) for end in ends]
    batch = PackedBatch(
        input_ids=torch.tensor([row[-1] for row in rows] + [0] * pad),
        position_ids=torch.tensor([len(row) - 1 for row in rows] + [0] * pad),
        lengths=tuple(np.diff([-1, *ends]).tolist()),
        step_tokens=torch.tensor(step_tokens, dtype=torch.int64),
        labels=torch.ones(len(step_tokens)),
        cu_steps=torch.tensor([0, len(step_tokens)], dtype=torch.int32),
        members=(0,),
        path_lengths=tuple(map(len, paths)),
        paths=torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *paths])),
    )
    return batch, torch.from_numpy(everyone)


def plain(lengths, pad=0, step_tokens=()):
    """Like `forest`, for sequences laid end to end."""
    batch, sees = forest([(i, *range(n - 1)) for i, n in enumerate(lengths)], pad, step_tokens)
    return replace(batch, paths=None), sees


def random_tree(rng, sequences, depth, branching):
    """Sequences that share prefixes. More `branching` means more different tokens after them."""
    made = [tuple(rng.integers(0, 2, depth))]
    for _ in range(sequences - 1):
        base, cut = made[int(rng.integers(len(made)))], int(rng.integers(0, depth))
        made.append((*base[:cut], *rng.integers(0, 2 + branching, int(rng.integers(1, depth)))))
    return made


def dense(q, k, v, sees, scaling, softcap=None):
    """Attention by its definition, in float64: [1, Q, H, d]."""
    q, k, v = q.double(), *(x.double().repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ k.mT * scaling
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    return (scores.masked_fill(~sees, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def seen(batch, sees, window):
    position = batch.position_ids
    return sees if window is None else sees & (position[:, None] - position < window)


BATCHES = {
    "plain": lambda: plain((9, 17, 1, 30, 12, 5), 7),
    "one": lambda: plain((6,)),
    "tree": lambda: forest(random_tree(np.random.default_rng(0), 12, 20, 3), 5),
    "chain": lambda: forest([(1, 2, 3, 4, 5, 6, 7)] * 3),
    "large": lambda: forest(random_tree(np.random.default_rng(1), 16, 60, 40), 130),
    "deep": lambda: forest([(*range(n), 99) for n in range(60)]),  # a comb with teeth of one token
    "50 solutions": lambda: forest([(7, 8, 9, i, *range(i % 3)) for i in range(50)], 3),
    "500 solutions": lambda: forest([(7, 8, 9, i, *range(i % 3)) for i in range(500)], 3),
    "long": lambda: plain((300, 2, 140, 256), 30),
}
BATCHES = {name: cache(make) for name, make in BATCHES.items()}
