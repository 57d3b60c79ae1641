"""Attention of packed tokens: both ways of computing it against the rule evaluated pair by pair."""

import pickle
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import tiny
import torch
from torch.nn.attention.flex_attention import create_block_mask

from pqm_fast.attention import Packing
from pqm_fast.attention.flex import BLOCK, Flex
from pqm_fast.attention.rule import Rule
from pqm_fast.attention.sdpa import Grouped
from pqm_fast.data.pack import PackedBatch


def forest(sequences, pad=0, step_index=()):
    """The prefix trees of token sequences, built the slow way: rows are prefixes, depth first; and who sees whom,
    [T, T]: a prefix sees the prefixes of itself."""
    rows = sorted({tuple(s[:n]) for s in sequences for n in range(1, len(s) + 1)})
    sees = np.array([[a[: len(b)] == b for b in rows] for a in rows]).reshape(len(rows), len(rows))
    total = len(rows) + pad
    everyone = np.eye(total, dtype=bool)
    everyone[: len(rows), : len(rows)] = sees
    end = [i + int(everyone[:, i].sum()) for i in range(total)]  # depth first, so what sees i stands behind it
    roots = [i for i, row in enumerate(rows) if len(row) == 1]
    lengths = np.diff([*roots, len(rows)]).tolist()
    batch = PackedBatch(
        input_ids=torch.tensor([row[-1] for row in rows] + [0] * pad),
        position_ids=torch.tensor([len(row) - 1 for row in rows] + [0] * pad),
        cu_seqlens=torch.tensor([*roots, len(rows)], dtype=torch.int32),
        lengths=tuple(lengths),
        step_index=torch.tensor(step_index, dtype=torch.int64),
        labels=torch.ones(len(step_index)),
        cu_steps=torch.tensor([0, len(step_index)], dtype=torch.int32),
        members=(0,),
        subtree_end=torch.tensor(end, dtype=torch.int32),
    )
    return batch, torch.from_numpy(everyone)


def plain(lengths, pad=0, step_index=()):
    """The same for sequences end to end."""
    batch, sees = forest([(i, *range(n - 1)) for i, n in enumerate(lengths)], pad, step_index)
    return replace(batch, subtree_end=None), sees


def random_tree(rng, sequences, depth, branching):
    """Sequences that part now and then: `branching` is the chance of another token than the one before."""
    made = [tuple(rng.integers(0, 2, depth))]
    for _ in range(sequences - 1):
        base, cut = made[int(rng.integers(len(made)))], int(rng.integers(0, depth))
        made.append((*base[:cut], *rng.integers(0, 2 + branching, int(rng.integers(1, depth)))))
    return made


def dense(q, k, v, sees, scaling, softcap=None):
    """The definition in float64: [1, Q, H, d]."""
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
    "blocks": lambda: forest(random_tree(np.random.default_rng(1), 16, 60, 40), 130),
    "long": lambda: plain((300, 2, 140, 256), 30),
    "all but one": lambda: plain((1, 400, 111)),  # of the first block is seen by the second, and by the third
}
BATCHES = {name: cache(make) for name, make in BATCHES.items()}


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (4, None), (150, 0.7)])
@pytest.mark.parametrize("rows", ["all", "some", "first"])
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("kind", ["grouped", "flex"])
def test_attention_is_the_rule_pair_by_pair(kind, name, rows, window, softcap):
    batch, sees = BATCHES[name]()
    total, real = len(sees), batch.num_tokens
    rng = np.random.default_rng(3)
    chosen = {
        "all": np.arange(total),
        "some": np.sort(rng.choice(real, max(1, real // 3), replace=False)),
        "first": np.zeros(1, dtype=np.int64),
    }[rows]
    rule = replace(Rule.of(batch), rows=chosen)
    if kind == "flex":
        attention = Flex.of(rule, (window,)).to("cpu")
    else:
        attention = Grouped.of(rule, batch.lengths, causal=batch.subtree_end is None and rows == "all").to("cpu")
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, n, 16, generator=generator) for h, n in ((4, len(chosen)), (2, total), (2, total)))
    got = attention.attend(q, k, v, scaling=0.9, window=window, softcap=softcap)
    expected = dense(q, k, v, seen(batch, sees, window)[torch.from_numpy(chosen)], 0.9, softcap)
    assert got.shape == (1, len(chosen), 4, 16)
    own = torch.from_numpy(chosen < real)  # nobody reads the rows of padding
    assert tiny.relative_error(got[:, own], expected[:, own]) <= 1e-6


def tables(mask):
    """Which [query block, key block] a BlockMask computes under its mask, and which without."""
    found = []
    for count, indices in ((mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)):
        table = torch.zeros(indices.shape[-2:], dtype=torch.bool)
        for i, n in enumerate(count[0, 0].tolist()):
            table[i, indices[0, 0, i, :n].long()] = True
        found.append(table)
    return found


@pytest.mark.parametrize("window", [None, 40, 200])
@pytest.mark.parametrize("share", [1.0, 0.4, 0.01])
@pytest.mark.parametrize("name", ["tree", "blocks", "long", "all but one"])
def test_blocks_are_those_that_pytorch_finds(name, share, window):
    """create_block_mask evaluates every pair; ours must be the same blocks, or safe ones under a window."""
    batch, sees = BATCHES[name]()
    rng = np.random.default_rng(0)
    rows = np.flatnonzero(rng.random(len(sees)) < share) if share < 1 else np.arange(len(sees))
    allowed = seen(batch, sees, window)[torch.from_numpy(rows)]
    reference = create_block_mask(lambda b, h, q, kv: allowed[q, kv], None, None, *allowed.shape, device="cpu")
    mask = Flex.of(replace(Rule.of(batch), rows=rows), (window,)).to("cpu").masks[window]
    assert mask.shape == reference.shape
    partial, full = tables(mask)
    expected_partial, expected_full = tables(reference)
    if window is None:
        assert torch.equal(partial, expected_partial)
        assert torch.equal(full, expected_full)
    else:
        assert not (partial & full).any()
        assert not (full & ~expected_full).any()  # whole only where it is
        assert not ((expected_partial | expected_full) & ~(partial | full)).any()  # nothing left out
    q, kv = torch.arange(len(rows))[:, None], torch.arange(len(sees))
    assert torch.equal(mask.mask_mod(0, 0, q, kv), allowed)
    again = tables_of_queries(mask)
    assert all(torch.equal(a, b.T) for a, b in zip(again, (partial, full), strict=True))


def tables_of_queries(mask):
    """The same tables as the backward pass reads them, by key block."""
    swapped = type("", (), {})()
    swapped.kv_num_blocks, swapped.kv_indices = mask.q_num_blocks, mask.q_indices
    swapped.full_kv_num_blocks, swapped.full_kv_indices = mask.full_q_num_blocks, mask.full_q_indices
    return tables(swapped)


def test_blocks_leave_work_out():
    """The test above would pass with every block partial if windows were all it tried."""
    partial, full = tables(Flex.of(Rule.of(plain((1024,))[0]), (None,)).to("cpu").masks[None])
    assert torch.equal(partial, torch.eye(8, dtype=torch.bool))
    assert torch.equal(full, torch.ones(8, 8).tril(-1).bool())
    partial, full = tables(Flex.of(Rule.of(plain((1024,))[0]), (256,)).to("cpu").masks[256])
    assert (partial | full).sum() == 8 + 7 + 6  # beside the diagonal two blocks back
    assert full.sum() == 7


def test_plain_packing_needs_no_mask():
    batch, _ = plain((9, 17, 30), 4)
    packing = Packing.of(batch, flex=False).to("cpu")
    q = torch.randn(1, 2, 60, 16)
    packing.tokens.attend(q, q, q, scaling=None)
    packing.tokens.attend(q, q, q, scaling=None, window=30)
    assert packing.tokens.masks == {}


def test_masks_are_made_once_and_per_tree():
    sequences = [(t, *s) for t in range(4) for s in random_tree(np.random.default_rng(t), 4, 12, 2)]
    batch, _ = forest(sequences)
    tokens = Packing.of(batch, flex=False).to("cpu").tokens
    q = torch.randn(1, 2, batch.num_tokens, 16)
    for _ in range(3):
        tokens.attend(q, q, q, scaling=None)
    kept = {key: mask.data_ptr() for key, mask in tokens.masks.items()}
    tokens.attend(q, q, q, scaling=None)
    assert {key: mask.data_ptr() for key, mask in tokens.masks.items()} == kept
    # at most the square of twice the length of each
    assert sum(mask.numel() for mask in tokens.masks.values()) <= sum((2 * n) ** 2 for n in batch.lengths)


def test_packing_lists_each_row_once():
    batch, _ = forest([(1, 2, 3), (1, 2, 4), (5, 6)], step_index=(1, 2, 1, 3, 5))
    packing = Packing.of(batch, step_rows=True, flex=False)
    assert packing.rows.tolist() == [1, 2, 3, 5]
    assert packing.rows[packing.step_index].tolist() == batch.step_index.tolist()
    assert Packing.of(batch, flex=False).rows is None
    assert Packing.of(batch, flex=False).step_index is batch.step_index
    padded = Packing.of(batch, step_rows=True, flex=True)  # whole blocks
    assert padded.rows.tolist() == [1, 2, 3] + [5] * (BLOCK - 3)
    assert torch.equal(padded.step_index, packing.step_index)


def test_flex_serves_trees_and_step_rows_only():
    tree, _ = forest([(1, 2, 3), (1, 2, 4)], step_index=(2,))
    straight, _ = plain((4, 5), step_index=(2,))
    kinds = {
        (batch.subtree_end is None, flex): [type(p.tokens), type(p.steps)]
        for batch in (tree, straight)
        for flex in (False, True)
        for p in [Packing.of(batch, step_rows=True, flex=flex)]
    }
    assert kinds == {
        (False, False): [Grouped, Grouped],
        (False, True): [Flex, Flex],
        (True, False): [Grouped, Grouped],
        (True, True): [Grouped, Flex],  # plain causality needs no block mask
    }


@pytest.mark.parametrize("flex", [False, True])
def test_a_packing_travels_between_processes(flex):
    batch, _ = forest([(1, 2, 3), (1, 2, 4), (5, 6)], pad=3, step_index=(1, 2, 5))
    packing = Packing.of(batch, step_rows=True, windows=(None, 2), flex=flex)
    copy = pickle.loads(pickle.dumps(packing))
    q = torch.randn(1, 2, batch.input_ids.shape[0], 16)
    outputs = [p.to("cpu").tokens.attend(q, q, q, scaling=None, window=2) for p in (packing, copy)]
    assert torch.equal(*outputs)


def test_what_flex_cannot_do_is_said():
    batch, _ = forest([(1, 2, 3), (1, 2, 4)])
    tokens = Packing.of(batch, flex=True).to("cpu").tokens
    q = torch.randn(1, 2, 4, 16)
    with pytest.raises(ValueError, match="set attention_dropout to 0"):
        tokens.attend(q, q, q, scaling=None, dropout=0.1)
    with pytest.raises(ValueError, match="no block mask for a window of 2"):
        tokens.attend(q, q, q, scaling=None, window=2)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("window", [None, 150])
@pytest.mark.parametrize("name", ["blocks", "long"])
def test_compiled_flex_with_gradients(name, window, rows):
    """bfloat16: at most three times as far from float64 as SDPA with the same mask."""
    batch, sees = BATCHES[name]()
    chosen = np.sort(np.random.default_rng(0).choice(batch.num_tokens, 200, replace=False))
    rule = replace(Rule.of(batch), rows=chosen) if rows else Rule.of(batch)
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, h, n, 64, generator=generator).bfloat16().cuda().requires_grad_()
        for h, n in ((4, len(rule.rows)), (2, len(sees)), (2, len(sees)))
    ]
    upstream = torch.randn(1, len(rule.rows), 4, 64, generator=generator).cuda()
    upstream[:, torch.from_numpy(rule.rows >= batch.num_tokens)] = 0  # padding

    def run(attend):
        out = attend()
        return [out * (upstream != 0), *torch.autograd.grad((out * upstream).sum(), tensors)]

    flex = Flex.of(rule, (window,)).to("cuda")
    grouped = Grouped.of(rule, batch.lengths, causal=False).to("cuda")
    allowed = seen(batch, sees, window)[torch.from_numpy(rule.rows)].cuda()
    exact = run(lambda: dense(*tensors, allowed, 0.125))
    got = run(lambda: flex.attend(*tensors, scaling=0.125, window=window))
    plain_sdpa = run(lambda: grouped.attend(*tensors, scaling=0.125, window=window))
    for a, b, expected in zip(got, plain_sdpa, exact, strict=True):
        assert tiny.relative_error(a, expected) <= 3 * tiny.relative_error(b, expected)
