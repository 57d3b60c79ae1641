"""Sequences laid end to end for the varlen kernels: the arguments they get, and which kernel is called."""

import inspect
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import stand_ins
import tiny
import torch
from layouts import BATCHES, dense, plain, seen
from torch.nn.attention.varlen import varlen_attn

from pqm_fast.errors import PQMError
from pqm_fast.model.attention import Planner, kernels


def test_a_layer_neither_computes_nor_copies_arguments(monkeypatch):
    """Every layer passes the tensors of the plan to the kernel."""
    calls = []
    monkeypatch.setattr(kernels, "HALF", (torch.float32,))
    monkeypatch.setattr(
        kernels, "find", lambda *args, **kwargs: lambda q, k, v, **options: calls.append((k, v, options)) or q
    )
    attention = Planner("flash")(plain((9, 17), 4)[0]).to("cpu").attention
    q = torch.randn(1, 2, 30, 16)
    for _ in range(2):
        attention.attend(q, q, q, scaling=None)
    for _, _, options in calls:
        assert options["cu_queries"] is attention.cu_queries
        assert options["cu_keys"] is attention.cu_keys
        assert options["cu_queries"].dtype == options["cu_keys"].dtype == torch.int32
        longest = [options["longest_query"], options["longest_key"]]
        assert longest == [17, 17]
        assert all(type(length) is int for length in longest)
    assert calls[0][0].data_ptr() == q.data_ptr()  # plain packing gathers nothing


def test_half_precision_is_required():
    plan = Planner("varlen")(plain((9, 17), 4)[0]).to("cpu")
    q = torch.randn(1, 2, 30, 16)
    with pytest.raises(ValueError, match=r"'varlen' take float16 and bfloat16, not torch\.float32"):
        plan.attention.attend(q, q, q, scaling=None)


def test_attention_computes_in_the_dtype_of_autocast(monkeypatch):
    """Under autocast, rotary embeddings leave queries and keys in float32."""
    seen = []
    monkeypatch.setattr(kernels, "find", lambda *a, **h: lambda *qkv, **how: seen.extend(qkv[:3]) or qkv[0])
    plan = Planner("flash")(plain((9, 17), 4)[0]).to("cpu")
    q = torch.randn(1, 2, 30, 16)
    with torch.autocast("cpu", torch.bfloat16):
        for value in (q.bfloat16(), q):
            assert plan.attention.attend(q, q, value, scaling=None).dtype == torch.bfloat16
    assert [x.dtype for x in seen] == [torch.bfloat16] * 6


def call(kernel, **changes):
    given = {"scale": 0.5, "window": None, "softcap": None, "dropout": 0.0} | changes
    q, k = torch.randn(6, 4, 8), torch.randn(6, 2, 8)
    cu_queries, cu_keys = (torch.tensor(cu, dtype=torch.int32) for cu in ([0, 4, 6], [0, 4, 6]))
    lengths = {"cu_queries": cu_queries, "cu_keys": cu_keys, "longest_query": 4, "longest_key": 4}
    return kernel(q, k, k, **lengths, **given)


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
    }  # not every release has them, or writes "none" in the same way
    for stand_in in (stand_ins.flash_2, stand_ins.flash_3, stand_ins.flash_4):
        assert set(inspect.signature(stand_in).parameters) >= kernels._ARGUMENTS


@pytest.mark.parametrize("window", [None, 3])
def test_the_installed_pytorch_accepts_the_arguments(monkeypatch, window):
    """Passes the signature of the installed varlen_attn and its own checks, up to the call on a GPU."""
    reached = []
    signature = inspect.signature(varlen_attn)

    def bound(*args, **keywords):
        signature.bind(*args, **keywords)
        reached.append(keywords)
        return args[0]

    bound.__signature__ = signature
    call(kernels.calling_varlen(bound), window=window)
    assert reached[0]["window_size"] == ((-1, 0) if window is None else (2, 0))
    with pytest.raises(NotImplementedError, match="_flash_attention_forward"):  # no such kernel on a CPU
        call(kernels.calling_varlen(varlen_attn), window=window)


CASES = {  # installed, compute capability, head size, softcap, dropout -> the kernel
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
    kernel = kernels.installed_flash(capability, head_dim, softcap=softcap, dropout=dropout)
    assert (kernel and kernel.distribution) == expected


def test_a_release_is_recognised_by_its_distribution(monkeypatch):
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


def test_an_error_says_what_no_kernel_supports(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    kernels.find.cache_clear()
    with pytest.raises(ValueError, match=r"no kernel of 'varlen' here for heads of 64, softcap=True, dropout=False"):
        kernels.find("varlen", 0, 64, softcap=True, dropout=False)
    assert kernels.find("varlen", 0, 64, softcap=False, dropout=False)
    kernels.find.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["long", "large", "500 solutions"])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (150, None), (3, None), (None, 2.0)])
@pytest.mark.parametrize("key_heads", [2, 4])
@pytest.mark.parametrize("backend", ["varlen", "flash"])
def test_the_kernels_themselves_with_gradients(backend, key_heads, window, softcap, name):
    """In bfloat16 the error is at most three times that of SDPA. Padding is finite and passes no gradient on. A second
    run gives the same bits."""
    capability, _ = torch.cuda.get_device_capability()
    if backend == "varlen" and softcap:
        pytest.skip("varlen has no soft caps")
    if backend == "flash" and not kernels.installed_flash(capability, 64, softcap=bool(softcap), dropout=False):
        pytest.skip("no release of flash-attn is installed that serves this")
    batch, sees = BATCHES[name]()
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, h, len(sees), 64, generator=generator).bfloat16().cuda().requires_grad_()
        for h in (4, key_heads, key_heads)
    ]
    allowed = seen(batch, sees, window).cuda()
    upstream = torch.randn(1, len(sees), 4, 64, generator=generator)
    upstream[:, batch.num_tokens :] = 0  # padding is not read
    upstream = upstream.cuda()

    def run_with(attend):
        out = attend(*tensors)
        gradients = torch.autograd.grad((out * upstream).sum(), tensors)
        assert out.isfinite().all()
        return [out * (upstream != 0), *gradients]

    def run(backend):
        attention = Planner(backend)(batch).pin_memory().to("cuda").attention
        return run_with(lambda q, k, v: attention.attend(q, k, v, scaling=0.125, window=window, softcap=softcap))

    exact = run_with(lambda q, k, v: dense(q, k, v, allowed, 0.125, softcap))
    torch.use_deterministic_algorithms(True)
    try:
        result, again, padded = run(backend), run(backend), run("sdpa")
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, result, again))
    for ours, sdpa, expected in zip(result, padded, exact, strict=True):
        assert ours.isfinite().all()
        assert tiny.relative_error(ours, expected) <= 3 * tiny.relative_error(sdpa, expected)
