"""Padded batches through SDPA: masks made once, and on a GPU no kernel that keeps the scores."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from layouts import BATCHES, dense, forest, plain, random_tree, seen

from pqm_fast.attention import Planner
from pqm_fast.attention.rule import Rule
from pqm_fast.attention.sdpa import Grouped, _every_head


def test_plain_packing_needs_no_mask():
    batch, _ = plain((9, 17, 30), 4)
    packing = Planner("sdpa")(batch).to("cpu")
    q = torch.randn(1, 2, 60, 16)
    packing.tokens.attend(q, q, q, scaling=None)
    packing.tokens.attend(q, q, q, scaling=None, window=30)
    assert packing.tokens.masks == {}


def test_masks_are_made_once_and_per_tree():
    sequences = [(t, *s) for t in range(4) for s in random_tree(np.random.default_rng(t), 4, 12, 2)]
    batch, _ = forest(sequences)
    tokens = Planner("sdpa")(batch).to("cpu").tokens
    q = torch.randn(1, 2, batch.num_tokens, 16)
    for _ in range(3):
        tokens.attend(q, q, q, scaling=None)
    kept = {key: mask.data_ptr() for key, mask in tokens.masks.items()}
    tokens.attend(q, q, q, scaling=None)
    assert {key: mask.data_ptr() for key, mask in tokens.masks.items()} == kept
    # at most the square of twice the length of each
    assert sum(mask.numel() for mask in tokens.masks.values()) <= sum((2 * n) ** 2 for n in batch.lengths)


@pytest.mark.parametrize("name", ["tree", "chain", "blocks"])
def test_masks_are_laid_out_as_kernels_take_them(name):
    """Whatever the number of keys: of other strides SDPA makes a copy for every layer."""
    batch, sees = BATCHES[name]()
    tokens = Planner("sdpa")(batch).to("cpu").tokens
    q = torch.randn(1, 2, len(sees), 16)
    tokens.attend(q, q, q, scaling=None)
    for mask in tokens.masks.values():
        assert mask.stride(-1) == 1
        assert all(stride % 8 == 0 for stride in mask.stride()[:-1])
    assert any(mask.shape[-1] % 8 for mask in tokens.masks.values())


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_heads_are_repeated_in_the_order_of_grouped_ones(key_heads):
    q, k, v = (torch.randn(2, heads, 9, 16) for heads in (4, key_heads, key_heads))
    expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert torch.allclose(F.scaled_dot_product_attention(q, _every_head(k, 4), _every_head(v, 4)), expected, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("window", [None, 150])
@pytest.mark.parametrize("name", ["blocks", "long"])
def test_on_a_gpu_with_gradients(name, window, rows, dtype):
    """At most three times as far from float64 as on a CPU, or 1e-5: its float32 is made of products in TF32."""
    batch, sees = BATCHES[name]()
    chosen = np.sort(np.random.default_rng(0).choice(batch.num_tokens, 200, replace=False))
    rule = replace(Rule.of(batch), rows=chosen) if rows else Rule.of(batch)
    plan = Grouped.of(rule, batch.lengths, causal=name == "long" and not rows)
    generator = torch.Generator().manual_seed(0)
    heads = [
        torch.randn(1, h, n, 64, generator=generator).to(dtype)
        for h, n in ((4, len(rule.rows)), (2, len(sees)), (2, len(sees)))
    ]
    upstream = torch.randn(1, len(rule.rows), 4, 64, generator=generator)
    upstream[:, torch.from_numpy(rule.rows >= batch.num_tokens)] = 0  # padding

    def run(attend, device):
        tensors = [x.to(device).requires_grad_() for x in heads]
        out = attend(tensors)
        gradients = torch.autograd.grad((out * upstream.to(device)).sum(), tensors)
        return [x.detach().cpu() for x in (out * (upstream.to(device) != 0), *gradients)]

    allowed = seen(batch, sees, window)[torch.from_numpy(rule.rows)]
    exact = run(lambda qkv: dense(*qkv, allowed, 0.125), "cpu")

    def of_ours(device):
        moved = plan.to(device)
        return run(lambda qkv: moved.attend(*qkv, scaling=0.125, window=window), device)

    for found, reference, expected in zip(of_ours("cuda"), of_ours("cpu"), exact, strict=True):
        limit = max(3 * tiny.relative_error(reference, expected), 1e-5)
        assert tiny.relative_error(found, expected) <= limit


@pytest.mark.gpu
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.bfloat16, 64), (torch.bfloat16, 256), (torch.float16, 8), (torch.float32, 64)]
)
@pytest.mark.parametrize("trees", [False, True])
def test_no_scores_are_kept(trees, dtype, size, dropout):
    """Of a tree or a sequence of 4,096 tokens; with them it would be several times as much."""
    rule = Rule(rows=np.arange(4096), end=np.full(4096, 4096), position=np.arange(4096))
    plan = Grouped.of(rule, (4096,), causal=not trees).to("cuda")
    tensors = [torch.randn(1, h, 4096, size, device="cuda", dtype=dtype, requires_grad=True) for h in (14, 2, 2)]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(2):
        plan.attend(*tensors, scaling=0.125, dropout=dropout).sum().backward()
    taken = torch.cuda.max_memory_allocated() - before
    assert taken < 14 * 4096**2 * dtype.itemsize
