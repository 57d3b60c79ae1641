"""Sequences end to end for the varlen kernels: what they are told, and which of them is called."""

import inspect
import sys
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
import stand_ins
import tiny
import torch
from layouts import dense, plain, seen
from torch.nn.attention.varlen import varlen_attn

from pqm_fast.attention import Planner, kernels
from pqm_fast.attention.varlen import Varlen
from pqm_fast.errors import PQMError


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
def test_padding_is_sequences_no_longer_than_the_longest(lengths, total, ends):
    plan = Varlen.of(lengths, total, "varlen")
    assert plan.cu_seqlens.tolist() == [0, *ends]
    assert plan.cu_seqlens.dtype == torch.int32
    assert plan.longest == max(np.diff([0, *ends]))
    assert type(plan.longest) is int
    assert plan.rows is None


def test_nothing_is_computed_or_copied_in_a_layer(monkeypatch):
    """Every layer gives the kernel the tensors of the plan themselves."""
    calls = []
    monkeypatch.setattr(kernels, "HALF", (torch.float32,))
    monkeypatch.setattr(kernels, "find", lambda *args, **kwargs: lambda q, *rest, **how: calls.append(rest) or q)
    packing = Planner("flash")(plain((9, 17), 4)[0]).to("cpu")
    q = torch.randn(1, 2, 30, 16)
    for _ in range(2):
        packing.tokens.attend(q, q, q, scaling=None)
    assert all(cu is packing.tokens.cu_seqlens and longest == 17 for _, _, cu, longest in calls)
    assert calls[0][0].data_ptr() == q.data_ptr()


def test_half_precision_is_asked_for():
    packing = Planner("varlen")(plain((9, 17), 4)[0]).to("cpu")
    q = torch.randn(1, 2, 30, 16)
    with pytest.raises(ValueError, match=r"'varlen' take float16 and bfloat16, not torch\.float32"):
        packing.tokens.attend(q, q, q, scaling=None)


def test_autocast_says_what_is_computed_in(monkeypatch):
    """Rotary embeddings leave queries and keys in float32 under it."""
    seen = []
    monkeypatch.setattr(kernels, "find", lambda *a, **h: lambda *qkv, **how: seen.extend(qkv[:3]) or qkv[0])
    packing = Planner("flash")(plain((9, 17), 4)[0]).to("cpu")
    q = torch.randn(1, 2, 30, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert packing.tokens.attend(q, q, q.bfloat16(), scaling=None).dtype == torch.bfloat16
    assert [x.dtype for x in seen] == [torch.bfloat16] * 3


def call(kernel, **changes):
    given = {"scale": 0.5, "window": None, "softcap": None, "dropout": 0.0} | changes
    q, k = torch.randn(6, 4, 8), torch.randn(6, 2, 8)
    return kernel(q, k, k, torch.tensor([0, 4, 6], dtype=torch.int32), 4, **given)


def test_dropout_and_determinism_reach_flash_attn():
    passed = {}

    def function(*qkv, **keywords):
        passed.clear()
        passed.update(keywords)
        return qkv[0]

    kernel = kernels.calling_flash(function)
    call(kernel, dropout=0.25)
    assert passed["dropout_p"] == 0.25
    assert "deterministic" not in passed
    torch.use_deterministic_algorithms(True)
    try:
        call(kernel)
    finally:
        torch.use_deterministic_algorithms(False)
    assert passed["deterministic"] is True
    assert not passed.keys() & {
        "dropout_p",
        "softcap",
        "window_size",
    }  # not every release has them, or writes none alike
    for stand_in in (stand_ins.flash_2, stand_ins.flash_3, stand_ins.flash_4):
        assert set(inspect.signature(stand_in).parameters) >= kernels._ARGUMENTS


@pytest.mark.parametrize("window", [None, 3])
def test_this_pytorch_takes_what_is_given(monkeypatch, window):
    """The signature of the varlen_attn that is installed, and its own checks, up to where the GPU would come in."""
    reached = []
    found = inspect.signature(varlen_attn)

    def bound(*args, **keywords):
        found.bind(*args, **keywords)
        reached.append(keywords)
        return args[0]

    bound.__signature__ = found
    call(kernels.calling_varlen(bound), window=window)
    assert reached[0]["window_size"] == ((-1, 0) if window is None else (2, 0))
    with pytest.raises(NotImplementedError, match="_flash_attention_forward"):  # no such kernel on a CPU
        call(kernels.calling_varlen(varlen_attn), window=window)


CASES = {  # installed, compute capability, head size, softcap, dropout -> which
    "newest": (("flash-attn", "flash-attn-3", "flash-attn-4"), 9, 128, False, False, "flash-attn-4"),
    "on Blackwell": (("flash-attn", "flash-attn-3"), 10, 128, False, False, "flash-attn"),
    "on Ampere": (("flash-attn", "flash-attn-3", "flash-attn-4"), 8, 128, False, False, "flash-attn"),
    "large heads": (("flash-attn-3", "flash-attn-4"), 9, 256, False, False, "flash-attn-3"),
    "a cap": (("flash-attn-3", "flash-attn-4"), 9, 128, True, False, "flash-attn-3"),
    "dropout": (("flash-attn", "flash-attn-3", "flash-attn-4"), 9, 128, False, True, "flash-attn"),
    "a cap and dropout": (("flash-attn", "flash-attn-3", "flash-attn-4"), 9, 128, True, True, None),
    "too large heads": (("flash-attn", "flash-attn-3", "flash-attn-4"), 9, 320, False, False, None),
    "odd heads": (("flash-attn",), 9, 100, False, False, None),
    "an old GPU": (("flash-attn",), 7, 64, False, False, None),
    "none": ((), 9, 64, False, False, None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_newest_release_that_serves(monkeypatch, case):
    installed, capability, head_dim, softcap, dropout, expected = CASES[case]
    monkeypatch.setattr(kernels, "is_installed", lambda kernel: kernel.distribution in installed)
    found = kernels.installed_flash(capability, head_dim, softcap=softcap, dropout=dropout)
    assert (found and found.distribution) == expected


def test_installed_goes_by_the_distribution(monkeypatch):
    """flash-attn 2 and 4 share a package."""
    kernels.is_installed.cache_clear()
    assert kernels.is_installed(kernels.VARLEN)
    absent = kernels.FLASH[0]._replace(distribution="pqm-fast-has-no-such-package")
    assert not kernels.is_installed(absent)


def install(monkeypatch, function):
    monkeypatch.setattr(metadata, "version", lambda name: "2.8.3")
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=function))
    return kernels.FLASH[-1]


def test_an_installed_release_is_loaded(monkeypatch):
    assert kernels.load(install(monkeypatch, stand_ins.flash_2)) is stand_ins.flash_2


def test_an_old_release_is_named(monkeypatch):
    """2.5 had no soft caps."""
    old = install(monkeypatch, lambda q, k, v, max_seqlen_q, max_seqlen_k, softmax_scale, causal, window_size: q)
    with pytest.raises(PQMError, match=r"flash-attn 2\.8\.3 is too old \(it has no deterministic, softcap\)"):
        kernels.load(old)


def test_a_release_built_for_another_pytorch_is_named(monkeypatch):
    broken = install(monkeypatch, None)
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # importing it raises ImportError
    with pytest.raises(PQMError, match=r"flash-attn 2\.8\.3 is installed but cannot be used .*install it again"):
        kernels.load(broken)


def test_what_no_kernel_does_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    kernels.find.cache_clear()
    with pytest.raises(ValueError, match=r"no kernel of 'varlen' here for heads of 64, softcap=True, dropout=False"):
        kernels.find("varlen", 0, 64, softcap=True, dropout=False)
    assert kernels.find("varlen", 0, 64, softcap=False, dropout=False)
    kernels.find.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (150, None), (None, 2.0)])
@pytest.mark.parametrize("key_heads", [2, 4])
@pytest.mark.parametrize("backend", ["varlen", "flash"])
def test_the_kernels_themselves_with_gradients(backend, key_heads, window, softcap, rows):
    """bfloat16: at most three times as far from float64 as SDPA; padding finite, with gradients of 0 behind it."""
    capability, _ = torch.cuda.get_device_capability()
    if backend == "varlen" and softcap:
        pytest.skip("varlen has no soft caps")
    if backend == "flash" and not kernels.installed_flash(capability, 64, softcap=bool(softcap), dropout=False):
        pytest.skip("no release of flash-attn is installed that serves this")
    batch, sees = plain((300, 2, 140, 256, 1), 200, step_index=(5, 299, 300, 600, 698))
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, h, len(sees), 64, generator=generator).bfloat16().cuda().requires_grad_()
        for h in (4, key_heads, key_heads)
    ]
    allowed = seen(batch, sees, window).cuda()

    everywhere = torch.randn(1, len(sees), 4, 64, generator=generator)

    def run(which):
        packing = Planner(which, step_rows=rows, windows=(window,))(batch).pin_memory().to("cuda")
        plan, index = (packing.steps, packing.rows) if rows else (packing.tokens, torch.arange(len(sees)).cuda())
        read = torch.arange(len(index)) < (5 if rows else batch.num_tokens)  # no repeated row, no padding
        upstream = (everywhere.index_select(1, index.cpu()) * read[None, :, None, None]).cuda()
        q, k, v = tensors
        out = plan.attend(q.index_select(2, index), k, v, scaling=0.125, window=window, softcap=softcap)
        exact = dense(*tensors, allowed, 0.125, softcap).index_select(1, index)
        assert out.isfinite().all()
        found = [[o * (upstream != 0), *torch.autograd.grad((o * upstream).sum(), tensors)] for o in (out, exact)]
        assert all(x.isfinite().all() for x in found[0])
        return [tiny.relative_error(a, b) for a, b in zip(*found, strict=True)]

    for ours, theirs in zip(run(backend), run("sdpa"), strict=True):
        assert ours <= 3 * theirs
