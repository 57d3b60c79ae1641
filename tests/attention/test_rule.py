"""Attention of packed tokens: every way of computing it against the rule evaluated pair by pair."""

from dataclasses import replace

import numpy as np
import pytest
import stand_ins
import tiny
import torch
from layouts import BATCHES, dense, seen

from pqm_fast.attention import kernels
from pqm_fast.attention.flex import Flex
from pqm_fast.attention.rule import Rule
from pqm_fast.attention.sdpa import Grouped
from pqm_fast.attention.varlen import Varlen

WINDOWS = [(None, None), (4, None), (150, 0.7)]
KERNELS = {
    "flash_2": kernels.calling_flash(stand_ins.flash_2),
    "flash_3": kernels.calling_flash(stand_ins.flash_3),
    "flash_4": kernels.calling_flash(stand_ins.flash_4),
    "varlen_2_11": kernels.calling_varlen(stand_ins.varlen_2_11),
    "varlen_2_13": kernels.calling_varlen(stand_ins.varlen_2_13),
}


@pytest.mark.parametrize(("window", "softcap"), WINDOWS)
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


@pytest.mark.parametrize(("window", "softcap"), [*WINDOWS, (1, None)])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("rows", ["all", "some", "first"])
@pytest.mark.parametrize("name", ["plain", "one", "long", "all but one"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_varlen_is_the_rule_pair_by_pair_with_gradients(monkeypatch, kernel, name, rows, key_heads, window, softcap):
    """In float64, through functions with the signatures of the kernels."""
    softcap = softcap if kernel in ("flash_2", "flash_3") else None
    monkeypatch.setattr(kernels, "HALF", (torch.float64,))
    monkeypatch.setattr(kernels, "find", lambda *args, **kwargs: KERNELS[kernel])
    batch, sees = BATCHES[name]()
    total, real = len(sees), batch.num_tokens
    rng = np.random.default_rng(3)
    some = np.sort(rng.choice(real, max(1, real // 3), replace=False))
    chosen = {
        "all": None,
        "some": np.pad(some, (0, 5), mode="edge"),
        "first": np.zeros(3, dtype=np.int64),
    }[rows]
    attention = Varlen.of(batch.lengths, total, "flash", chosen).to("cpu")
    index = torch.arange(total) if chosen is None else torch.from_numpy(chosen)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, h, total, 16, generator=generator, dtype=torch.float64, requires_grad=True)
        for h in (4, key_heads, key_heads)
    )
    # a repeated row is read from one query, so what it passes back goes there
    got = attention.attend(q.index_select(2, index), k, v, scaling=0.9, window=window, softcap=softcap)
    assert got.shape == (1, len(index), 4, 16)
    assert got.isfinite().all()  # padding too
    expected = dense(q, k, v, seen(batch, sees, window), 0.9, softcap).index_select(1, index)
    own = (index < real)[None, :, None, None]
    upstream = torch.randn(got.shape, generator=generator, dtype=torch.float64) * own
    assert torch.allclose(got * own, expected * own, atol=1e-12)
    gradients = [torch.autograd.grad((x * upstream).sum(), (q, k, v)) for x in (got, expected)]
    for a, b in zip(*gradients, strict=True):
        assert a.isfinite().all()
        assert torch.allclose(a, b, atol=1e-12)
