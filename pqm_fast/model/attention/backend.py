"""Chooses an attention backend for a model on a device."""

from typing import Any, Literal, get_args

import torch

from pqm_fast.errors import PQMError
from pqm_fast.model.attention import kernels

Backend = Literal["flash", "varlen", "sdpa"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)  # in order of preference


def choose_backend(requested: str, device: torch.device, dtype: torch.dtype, config: Any) -> Backend:
    """Returns the backend for `requested`, which is a backend or "auto": the first that serves the model.

    `dtype` is the one that attention computes in, autocast's where autocast is on; `config` is the model's. Raises
    PQMError for a backend that cannot serve the model, with the reason and what to do.
    """
    if requested == "auto":
        obstacles = {b: _obstacle(b, device, dtype, config) for b in BACKENDS}
        for candidate, obstacle in obstacles.items():
            if obstacle is None:
                return candidate
        reasons = ". ".join(f"{name!r}: {obstacle}" for name, obstacle in obstacles.items())
        raise PQMError(f"no attention can be used here. {reasons}")
    if requested not in BACKENDS:
        raise PQMError(f"attention {requested!r} is not known: choose from auto, {', '.join(BACKENDS)}")
    backend: Backend = requested
    obstacle = _obstacle(backend, device, dtype, config)
    if obstacle is not None:
        raise PQMError(f"attention {backend!r} cannot be used here: {obstacle}")
    return backend


def _obstacle(backend: Backend, device: torch.device, dtype: torch.dtype, config: Any) -> str | None:
    """Why `backend` cannot serve the model and what to do; None if it can. Without a GPU, SDPA serves every model."""
    if device.type != "cuda":
        return None if backend == "sdpa" else f"it needs a CUDA device, and the model is on {device.type}; take 'sdpa'"
    text = config.get_text_config()
    dims, dropout = _head_dims(text), _dropout(text)
    sizes = " and ".join(map(str, sorted(dims)))
    softcap = bool(getattr(text, "attn_logit_softcapping", None))
    capability = compute_capability(device)
    if backend == "sdpa":  # limited by its kernels that keep no scores
        if dtype not in (torch.float16, torch.float32, *([torch.bfloat16] if capability >= kernels.AMPERE else [])):
            return f"it has no kernel for {dtype} on a GPU of compute capability {capability}; compute in float32"
        return None
    if capability < kernels.AMPERE:
        return f"it needs compute capability {kernels.AMPERE} or more, and this GPU has {capability}; take 'sdpa'"
    if dtype not in kernels.HALF:
        return f"its kernels take float16 and bfloat16, and this is {dtype}; compute in bfloat16 or take 'sdpa'"
    head_dim = max(dims)
    if min(dims) != head_dim or head_dim > 256 or head_dim % 8:
        return f"its kernels take heads of one size, a multiple of 8 up to 256, not of {sizes}; take 'sdpa'"
    if backend == "varlen":
        if not has_varlen():
            return "this build of PyTorch has no flash attention; take 'sdpa'"
        if softcap or dropout:
            lacking_feature = "soft caps" if softcap else "dropout"
            return f"it has no {lacking_feature} in attention, which config.json asks for; take 'flash' or 'sdpa'"
        return None
    if kernels.installed_flash(capability, head_dim, softcap=softcap, dropout=bool(dropout)) is None:
        if any(map(kernels.is_installed, kernels.FLASH)):
            return (
                f"no installed release of flash-attn serves heads of {head_dim}, {softcap=}, {dropout=} on compute "
                f"capability {capability}; install flash-attn 2 ({kernels.HOW_TO_INSTALL}) or take 'auto'"
            )
        return f"flash-attn is not installed; {kernels.HOW_TO_INSTALL}, or take 'auto'"
    return None


def compute_capability(device: torch.device) -> int:
    """The major number of the compute capability."""
    return torch.cuda.get_device_capability(device)[0]


def has_varlen() -> bool:
    return torch.backends.cuda.is_flash_attention_available()


def _head_dims(text: Any) -> set[int]:
    """The sizes of the heads of queries, keys and values in all layers."""
    if getattr(text, "v_head_dim", None):  # multi-head latent attention, where head_dim is only a part
        return {text.qk_nope_head_dim + text.qk_rope_head_dim, text.v_head_dim}
    sizes = (getattr(text, name, None) for name in ("head_dim", "global_head_dim"))
    return {dim for dim in sizes if dim} or {text.hidden_size // text.num_attention_heads}


def _dropout(text: Any) -> float:
    """Attention dropout, under either name that decoders use."""
    return max(getattr(text, name, None) or 0.0 for name in ("attention_dropout", "attn_pdrop"))
