"""The backend that is chosen for a model on a device, and the messages if one cannot be used."""

import pytest
import tiny
import torch

from pqm_fast.errors import PQMError
from pqm_fast.model.attention import backend as backends
from pqm_fast.model.attention import choose_backend, kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
FLASH_2, FLASH_3, FLASH_4 = "flash-attn", "flash-attn-3", "flash-attn-4"


@pytest.fixture
def machine(monkeypatch):
    """Call with the installed packages and the abilities of the machine."""

    def set_up(*installed, capability=9, varlen=True):
        monkeypatch.setattr(kernels, "is_installed", lambda kernel: kernel.distribution in installed)
        monkeypatch.setattr(backends, "compute_capability", lambda device: capability)
        monkeypatch.setattr(backends, "has_varlen", lambda: varlen)

    return set_up


def config(architecture="qwen2", **changes):
    return tiny.config(architecture, **({"head_dim": 64} if architecture != "gpt2" else {}) | changes)


@pytest.mark.parametrize(
    ("installed", "changes", "expected"),
    [
        pytest.param((FLASH_2,), {}, "flash", id="flash-attn 2"),
        pytest.param((FLASH_3,), {}, "flash", id="flash-attn 3"),
        pytest.param((FLASH_4,), {}, "flash", id="flash-attn 4"),
        pytest.param((), {}, "varlen", id="nothing installed"),
        pytest.param((FLASH_2,), {"dtype": torch.float16}, "flash", id="float16"),
        pytest.param((FLASH_2,), {"dtype": torch.float32}, "sdpa", id="float32"),
        pytest.param((), {"dtype": torch.float32, "config": config(head_dim=50)}, "sdpa", id="float32, heads of 50"),
        pytest.param((FLASH_2,), {"device": CPU}, "sdpa", id="CPU"),
        pytest.param((FLASH_2,), {"device": torch.device("mps")}, "sdpa", id="another device"),
        pytest.param((FLASH_2,), {"capability": 7, "dtype": torch.float16}, "sdpa", id="old GPU"),
        pytest.param((FLASH_3,), {"capability": 10}, "varlen", id="a release for other GPUs"),
        pytest.param((), {"varlen": False}, "sdpa", id="PyTorch without flash attention"),
        pytest.param((FLASH_2,), {"config": config("gemma2")}, "flash", id="soft caps"),
        pytest.param((FLASH_4,), {"config": config("gemma2")}, "sdpa", id="soft caps, flash-attn 4 alone"),
        pytest.param((), {"config": config("gemma2")}, "sdpa", id="soft caps, nothing installed"),
        pytest.param((FLASH_2,), {"config": config(head_dim=256)}, "flash", id="heads of 256"),
        pytest.param((FLASH_4,), {"config": config(head_dim=256)}, "varlen", id="heads of 256, flash-attn 4 alone"),
        pytest.param((FLASH_2,), {"config": config(head_dim=320)}, "sdpa", id="heads of 320"),
        pytest.param((FLASH_2,), {"config": config(head_dim=84)}, "sdpa", id="heads of 84"),
        pytest.param((FLASH_2,), {"config": config(head_dim=8)}, "flash", id="tiny heads"),
        pytest.param((FLASH_2,), {"config": config(attention_dropout=0.1)}, "flash", id="dropout"),
        pytest.param((FLASH_3, FLASH_4), {"config": config(attention_dropout=0.1)}, "sdpa", id="dropout, 3 and 4"),
        pytest.param((), {"config": config(attention_dropout=0.1)}, "sdpa", id="dropout, nothing installed"),
        pytest.param(
            (FLASH_2,), {"config": config("gemma2", attention_dropout=0.1)}, "sdpa", id="soft caps and dropout"
        ),
        pytest.param((), {"config": config("gpt2", attn_pdrop=0.1)}, "sdpa", id="dropout as GPT-2 calls it"),
    ],
)
def test_auto_takes_the_fastest_that_serves(machine, installed, changes, expected):
    there = {name: changes.pop(name) for name in ("capability", "varlen") if name in changes}
    machine(*installed, **there)
    given = {"device": CUDA, "dtype": torch.bfloat16, "config": config()} | changes
    assert choose_backend("auto", **given) == expected
    assert choose_backend(expected, **given) == expected  # the same can be requested by name


@pytest.mark.parametrize(
    ("requested", "installed", "changes", "message"),
    [
        pytest.param("fast", (), {}, "'fast' is not known: choose from auto, flash, varlen, sdpa", id="unknown"),
        pytest.param("flash", (), {}, "not installed; pip install flash-attn --no-build-isolation", id="not installed"),
        pytest.param("flash", (FLASH_2,), {"device": CPU}, "needs a CUDA device, .* on cpu; take 'sdpa'", id="CPU"),
        pytest.param("varlen", (), {"device": CPU}, "needs a CUDA device", id="varlen on a CPU"),
        pytest.param("flash", (FLASH_2,), {"dtype": torch.float32}, "float16 and bfloat16, .*float32", id="float32"),
        pytest.param("varlen", (), {"dtype": torch.float32}, "compute in bfloat16", id="varlen, float32"),
        pytest.param("varlen", (), {"capability": 7}, "capability 8 or more, and this GPU has 7", id="old GPU"),
        pytest.param("varlen", (), {"varlen": False}, "this build of PyTorch has no flash attention", id="build"),
        pytest.param("varlen", (), {"config": config("gemma2")}, "no soft caps .*'flash' or 'sdpa'", id="soft caps"),
        pytest.param("varlen", (), {"config": config(attention_dropout=0.1)}, "no dropout in", id="dropout"),
        pytest.param("flash", (FLASH_2,), {"config": config(head_dim=320)}, "256, not of 320; take 'sdpa'", id="heads"),
        pytest.param("flash", (FLASH_4,), {"config": config("gemma2")}, "no installed release .*softcap=True", id="4"),
        pytest.param("flash", (FLASH_3,), {"capability": 10}, "on compute capability 10; install flash-attn 2", id="3"),
        pytest.param("sdpa", (), {"dtype": torch.float64}, "no kernel for torch.float64 on a GPU", id="float64"),
        pytest.param(
            "sdpa", (), {"capability": 7}, "no kernel for torch.bfloat16 .* capability 7; .* float32", id="Turing"
        ),
        pytest.param(
            "auto",
            (),
            {"dtype": torch.float64},
            r"no attention can be used here\. 'flash': .*float64.*\. 'varlen': .*\. 'sdpa': it has no kernel",
            id="nothing at all",
        ),
    ],
)
def test_messages_for_backends_that_cannot_be_used(machine, requested, installed, changes, message):
    there = {name: changes.pop(name) for name in ("capability", "varlen") if name in changes}
    machine(*installed, **there)
    given = {"device": CUDA, "dtype": torch.bfloat16, "config": config()} | changes
    with pytest.raises(PQMError, match=message):
        choose_backend(requested, **given)


def test_sdpa_serves_everything_on_a_cpu():
    odd = config("gemma2", head_dim=12, attention_dropout=0.1)
    assert choose_backend("sdpa", CPU, torch.float64, odd) == "sdpa"


def test_heads_of_latent_attention(machine):
    """Keys and values have different sizes, and head_dim is only a part of them."""
    machine(FLASH_2)
    latent = tiny.AutoConfig.for_model("deepseek_v3")
    assert (latent.qk_nope_head_dim + latent.qk_rope_head_dim, latent.v_head_dim) == (192, 128)
    assert choose_backend("auto", CUDA, torch.bfloat16, latent) == "sdpa"
    with pytest.raises(PQMError, match="not of 128 and 192"):
        choose_backend("flash", CUDA, torch.bfloat16, latent)
