"""Padded batches through SDPA: masks are made once, and on a GPU no kernel keeps the scores."""

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from layouts import BATCHES, dense, forest, plain, random_tree, seen

from pqm_fast.model.attention import Planner
from pqm_fast.model.attention.paths import AttentionPaths
from pqm_fast.model.attention.sdpa import PaddedAttention, _repeat_heads


def test_plain_packing_needs_no_mask():
    batch, _ = plain((9, 17, 30), 4)
    plan = Planner("sdpa")(batch).to("cpu")
    q = torch.randn(1, 2, 60, 16)
    plan.attention.attend(q, q, q, scaling=None)
    plan.attention.attend(q, q, q, scaling=None, window=30)
    assert plan.attention.masks == {}


def test_masks_are_made_once_and_no_larger_than_needed():
    sequences = [(t, *s) for t in range(4) for s in random_tree(np.random.default_rng(t), 4, 12, 2)]
    batch, _ = forest(sequences)
    attention = Planner("sdpa")(batch).to("cpu").attention
    q = torch.randn(1, 2, batch.num_tokens, 16)
    for _ in range(3):
        attention.attend(q, q, q, scaling=None)
    kept = {key: mask.data_ptr() for key, mask in attention.masks.items()}
    attention.attend(q, q, q, scaling=None)
    assert {key: mask.data_ptr() for key, mask in attention.masks.items()} == kept
    # at most twice as many queries, and twice as many keys, as each sequence has
    needed = sum(4 * q * k for q, k in zip(batch.lengths, batch.path_lengths, strict=True))
    assert 0 < sum(mask.numel() for mask in attention.masks.values()) <= needed


@pytest.mark.parametrize("name", ["tree", "deep", "large"])
def test_masks_have_the_strides_that_kernels_need(name):
    """For any number of keys. SDPA would copy a mask with other strides in every layer."""
    batch, sees = BATCHES[name]()
    attention = Planner("sdpa")(batch).to("cpu").attention
    q = torch.randn(1, 2, len(sees), 16)
    attention.attend(q, q, q, scaling=None)
    for mask in attention.masks.values():
        assert mask.stride(-1) == 1
        assert all(stride % 8 == 0 for stride in mask.stride()[:-1])
    assert any(mask.shape[-1] % 8 for mask in attention.masks.values())


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_heads_are_repeated_in_the_order_of_grouped_ones(key_heads):
    q, k, v = (torch.randn(2, heads, 9, 16) for heads in (4, key_heads, key_heads))
    expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert torch.allclose(
        F.scaled_dot_product_attention(q, _repeat_heads(k, 4), _repeat_heads(v, 4)), expected, atol=1e-6
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [64, 36])
@pytest.mark.parametrize("window", [None, 150])
@pytest.mark.parametrize("name", ["large", "long"])
def test_on_a_gpu_with_gradients(name, window, size, dtype):
    """The error is at most three times that on a CPU, or 1e-5, because float32 products on a GPU use TF32. Heads of 36
    are not a multiple of 16 bytes in bfloat16."""
    batch, sees = BATCHES[name]()
    plan = Planner("sdpa")(batch).attention
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(1, h, len(sees), size, generator=generator).to(dtype) for h in (4, 2, 2)]
    upstream = torch.randn(1, len(sees), 4, size, generator=generator)
    upstream[:, batch.num_tokens :] = 0  # padding

    def run(attend, device):
        tensors = [x.to(device).requires_grad_() for x in heads]
        out = attend(tensors)
        gradients = torch.autograd.grad((out * upstream.to(device)).sum(), tensors)
        return [x.detach().cpu() for x in (out * (upstream.to(device) != 0), *gradients)]

    allowed = seen(batch, sees, window)
    exact = run(lambda qkv: dense(*qkv, allowed, 0.125), "cpu")

    def padded_attention(device):
        moved = plan.map_tensors(lambda x: x.to(device))
        return run(lambda qkv: moved.attend(*qkv, scaling=0.125, window=window), device)

    for on_gpu, on_cpu, expected in zip(padded_attention("cuda"), padded_attention("cpu"), exact, strict=True):
        limit = max(3 * tiny.relative_error(on_cpu, expected), 1e-5)
        assert tiny.relative_error(on_gpu, expected) <= limit


@pytest.mark.gpu
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.bfloat16, 64), (torch.bfloat16, 256), (torch.float16, 8), (torch.float32, 64)]
)
@pytest.mark.parametrize("trees", [False, True])
def test_no_scores_are_kept(trees, dtype, size, dropout):
    """In a tree and in a sequence of 4,096 tokens. With them, memory would be several times as large."""
    lengths = (np.array([2048, 2048]), np.array([2048, 4096])) if trees else (np.array([4096]), np.array([4096]))
    rows = np.concatenate([np.arange(2048), np.arange(4096)]) if trees else None
    plan = PaddedAttention.of(AttentionPaths(*lengths, rows)).map_tensors(lambda x: x.cuda())
    tensors = [torch.randn(1, h, 4096, size, device="cuda", dtype=dtype, requires_grad=True) for h in (14, 2, 2)]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(2):
        plan.attend(*tensors, scaling=0.125, dropout=dropout).sum().backward()
    taken = torch.cuda.max_memory_allocated() - before
    assert taken < 14 * 4096**2 * dtype.itemsize
