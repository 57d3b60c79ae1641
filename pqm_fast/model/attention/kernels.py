"""Kernels for sequences laid end to end: those of the flash-attn packages and PyTorch's own, called alike.

All take half precision on CUDA only. Window, softcap and dropout differ from release to release of flash-attn.
"""

import inspect
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module, metadata
from typing import Any, NamedTuple

import torch

from pqm_fast.errors import PQMError


class Kernel(NamedTuple):
    """A release of flash-attn, or PyTorch's `torch.nn.attention.varlen`, and what it can do with gradients."""

    distribution: str
    module: str
    function: str
    capabilities: range  # major compute capabilities
    head_dim: int  # at most
    softcap: bool
    dropout: bool

    def serves(self, capability: int, head_dim: int, *, softcap: bool, dropout: bool) -> bool:
        # no release takes a cap and dropout together
        fits = capability in self.capabilities and head_dim <= self.head_dim and head_dim % 8 == 0
        return fits and self.softcap >= softcap and self.dropout >= dropout and not (softcap and dropout)


AMPERE, HOPPER = 8, 9
HALF = (torch.float16, torch.bfloat16)
# Newest first. flash-attn 4 has a backward pass from Hopper on, for 256 as head size only in part, and none with a cap.
FLASH = (
    Kernel("flash-attn-4", "flash_attn.cute", "flash_attn_varlen_func", range(HOPPER, 12), 128, False, False),
    Kernel("flash-attn-3", "flash_attn_interface", "flash_attn_varlen_func", range(HOPPER, 10), 256, True, False),
    Kernel("flash-attn", "flash_attn", "flash_attn_varlen_func", range(AMPERE, 100), 256, True, True),
)
VARLEN = Kernel("torch", "torch.nn.attention.varlen", "varlen_attn", range(AMPERE, 100), 256, False, False)
HOW_TO_INSTALL = "pip install flash-attn --no-build-isolation"
_ARGUMENTS = {"max_seqlen_q", "max_seqlen_k", "softmax_scale", "causal", "window_size", "softcap", "deterministic"}


def installed_flash(capability: int, head_dim: int, *, softcap: bool, dropout: bool) -> Kernel | None:
    """The newest installed release of flash-attn that serves this."""
    for kernel in FLASH:
        if kernel.serves(capability, head_dim, softcap=softcap, dropout=dropout) and is_installed(kernel):
            return kernel
    return None


@lru_cache
def is_installed(kernel: Kernel) -> bool:
    """By the name of the distribution: flash-attn 2 and 4 share a package, and 2 has files of 4 in it."""
    try:
        metadata.version(kernel.distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def load(kernel: Kernel) -> Callable[..., torch.Tensor]:
    """The kernel's own function. Raises PQMError if it cannot be imported or is too old."""
    named = f"{kernel.distribution} {metadata.version(kernel.distribution)}"
    try:
        function = getattr(import_module(kernel.module), kernel.function)
    except (ImportError, AttributeError) as error:  # built for another PyTorch, most often
        raise PQMError(
            f"{named} is installed but cannot be used ({error}): install it again for PyTorch {torch.__version__}, "
            "or choose the attention `varlen`"
        ) from error
    missing = _ARGUMENTS - set(inspect.signature(function).parameters) if kernel is not VARLEN else set()
    if missing:
        absent = ", ".join(sorted(missing))
        raise PQMError(f"{named} is too old (it has no {absent}): update it, or choose the attention `varlen`")
    return function


@lru_cache
def find(backend: str, device: int, head_dim: int, *, softcap: bool, dropout: bool) -> Callable[..., torch.Tensor]:
    """What `attend` of Varlen calls, made once: (query [T, H, d], key, value [P, H_kv, d], cu_queries [G+1] int32,
    cu_keys, longest_query, longest_key, *, scale, window, softcap, dropout) -> [T, H, d]. Causal, and the last query of
    a sequence sees its last key, as all releases have it from 2.1 on. `backend` is "flash" or "varlen", `device` the
    number of a CUDA device. Raises ValueError for what no kernel does."""
    capability, _ = torch.cuda.get_device_capability(device)
    if backend == "varlen":
        kernel = VARLEN if VARLEN.serves(capability, head_dim, softcap=softcap, dropout=dropout) else None
    else:
        kernel = installed_flash(capability, head_dim, softcap=softcap, dropout=dropout)
    if kernel is None:
        raise ValueError(
            f"no kernel of {backend!r} here for heads of {head_dim}, {softcap=}, {dropout=}, capability {capability}"
        )
    return (calling_varlen if kernel is VARLEN else calling_flash)(load(kernel))


def calling_flash(function: Callable) -> Callable[..., torch.Tensor]:
    """flash_attn_varlen_func of releases 2 to 4, whose common arguments have one name and meaning."""

    def call(query, key, value, cu_queries, cu_keys, longest_query, longest_key, *, scale, window, softcap, dropout):
        wanted: dict[str, Any] = {}
        if window is not None:  # what "no window" is written as differs
            wanted["window_size"] = (window - 1, 0)
        if softcap:
            wanted["softcap"] = softcap
        if dropout:
            wanted["dropout_p"] = dropout
        if torch.are_deterministic_algorithms_enabled():
            wanted["deterministic"] = True
        out = function(
            query,
            key,
            value,
            cu_seqlens_q=cu_queries,
            cu_seqlens_k=cu_keys,
            max_seqlen_q=longest_query,
            max_seqlen_k=longest_key,
            softmax_scale=scale,
            causal=True,
            **wanted,
        )
        return out[0] if isinstance(out, tuple) else out  # some of 3 and 4 return the log-sum-exp as well

    return call


def calling_varlen(function: Callable) -> Callable[..., torch.Tensor]:
    """varlen_attn of PyTorch 2.11 and later. 2.11 takes fewer key heads as they are; later it wants to be told."""
    told = "enable_gqa" in inspect.signature(function).parameters

    def call(query, key, value, cu_queries, cu_keys, longest_query, longest_key, *, scale, window, softcap, dropout):
        grouped = {"enable_gqa": True} if told and query.shape[1] != key.shape[1] else {}
        # (-1, 0) is causality without a window
        sides = (-1 if window is None else window - 1, 0)
        lengths = cu_queries, cu_keys, longest_query, longest_key
        return function(query, key, value, *lengths, scale=scale, window_size=sides, **grouped)

    return call
