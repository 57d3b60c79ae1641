"""Attention of packed tokens: every backend against the definition, pair by pair."""

import itertools

import numpy as np
import pytest
import stand_ins
import torch
from layouts import BATCHES, dense, forest, plain, seen

from pqm_fast.model.attention import Planner, kernels
from pqm_fast.model.attention.paths import AttentionPaths

WAYS = [(1, None, None), (4, None, None), (2, 4, None), (4, 1, None), (2, 150, 0.7)]
NAMES = [name for name in BATCHES if name != "500 solutions"]  # those are for a GPU
KERNELS = {
    "flash_2": kernels.calling_flash(stand_ins.flash_2),
    "flash_3": kernels.calling_flash(stand_ins.flash_3),
    "flash_4": kernels.calling_flash(stand_ins.flash_4),
    "varlen_2_11": kernels.calling_varlen(stand_ins.varlen_2_11),
    "varlen_2_13": kernels.calling_varlen(stand_ins.varlen_2_13),
}


def test_a_sequence_sees_the_path_that_ends_with_it():
    batch, _ = forest([(1, 2, 3), (1, 2, 4, 5), (1, 2, 4), (6,)], pad=7)
    paths = AttentionPaths.of(batch)
    assert paths.queries.tolist() == [3, 2, 1, 3, 3, 1]  # padding sequences are no longer than the longest real one
    assert paths.keys.tolist() == [3, 4, 1, 3, 3, 1]
    assert paths.rows.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, *range(6, 13)]


@pytest.mark.parametrize(
    ("lengths", "total", "ends"),
    [
        pytest.param((9, 17, 4), 30, [9, 26, 30], id="full"),
        pytest.param((9, 17, 4), 31, [9, 26, 30, 31], id="one of padding"),
        pytest.param((9, 17, 4), 47, [9, 26, 30, 47], id="padding of the longest"),
        pytest.param((9, 17, 4), 70, [9, 26, 30, 47, 64, 70], id="padding in pieces"),
        pytest.param((5,), 5, [5], id="one"),
        pytest.param((1,), 4, [1, 2, 3, 4], id="one token"),
        pytest.param((), 7, [7], id="short padding alone"),
        pytest.param((), 300, [128, 256, 300], id="padding alone"),
    ],
)
def test_padding_sequences_are_no_longer_than_the_longest(lengths, total, ends):
    batch = plain(lengths, total - sum(lengths))[0]
    paths = AttentionPaths.of(batch)
    with pytest.raises(ValueError, match="a batch without a row was given"):
        AttentionPaths.of(plain(())[0])
    assert np.cumsum(paths.queries).tolist() == np.cumsum(paths.keys).tolist() == ends
    assert paths.rows is None


@pytest.mark.parametrize(("key_heads", "window", "softcap"), WAYS)
@pytest.mark.parametrize(
    ("kernel", "name"),
    [*itertools.product(["sdpa", "flash_2"], NAMES), *itertools.product(list(KERNELS)[1:], ["plain", "tree"])],
)
def test_attention_equals_its_definition_with_gradients(monkeypatch, kernel, name, key_heads, window, softcap):
    """In float64, through functions with the signatures of the kernels."""
    softcap = softcap if kernel in ("sdpa", "flash_2", "flash_3") else None
    monkeypatch.setattr(kernels, "HALF", (torch.float64,))
    monkeypatch.setattr(kernels, "find", lambda *args, **kwargs: KERNELS[kernel])
    batch, sees = BATCHES[name]()
    total, real = len(sees), batch.num_tokens
    attention = Planner("sdpa" if kernel == "sdpa" else "flash")(batch).to("cpu").attention
    generator = torch.Generator().manual_seed(0)
    size = 24 if kernel == "sdpa" and key_heads == 2 else 16  # of values, as in latent attention
    q, k, v = (
        torch.randn(1, h, total, d, generator=generator, dtype=torch.float64, requires_grad=True)
        for h, d in ((4, 16), (key_heads, 16), (key_heads, size))
    )
    got = attention.attend(q, k, v, scaling=0.9, window=window, softcap=softcap)
    assert got.shape == (1, total, 4, size)
    assert got.isfinite().all()  # padding too
    expected = dense(q, k, v, seen(batch, sees, window), 0.9, softcap)
    is_real = (torch.arange(total) < real)[None, :, None, None]
    upstream = torch.randn(got.shape, generator=generator, dtype=torch.float64) * is_real
    assert torch.allclose(got * is_real, expected * is_real, atol=1e-12)
    gradients = [torch.autograd.grad((x * upstream).sum(), (q, k, v)) for x in (got, expected)]
    for a, b in zip(*gradients, strict=True):
        assert a.isfinite().all()
        assert torch.allclose(a, b, atol=1e-12)
