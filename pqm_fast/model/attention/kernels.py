"""Kernels for sequences laid end to end, from the flash-attn packages and from PyTorch, behind one call.

All of them need half precision on CUDA. Window, softcap and dropout differ between the releases of flash-attn.
"""

import inspect
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module, metadata
from typing import Any, NamedTuple

import torch

from pqm_fast.errors import PQMError


class Kernel(NamedTuple):
    """A release of flash-attn, or PyTorch's `torch.nn.attention.varlen`, and what it supports with gradients."""

    distribution: str
    module: str
    function: str
    capabilities: range  # major compute capabilities
    largest_head_dim: int
    softcap: bool
    dropout: bool

    def serves(self, capability: int, head_dim: int, *, softcap: bool, dropout: bool) -> bool:
        # no release supports a cap and dropout together
        fits = capability in self.capabilities and head_dim <= self.largest_head_dim and head_dim % 8 == 0
        return fits and self.softcap >= softcap and self.dropout >= dropout and not (softcap and dropout)


AMPERE, HOPPER = 8, 9
NEWEST = 99  # a capability that no GPU has yet
HALF = (torch.float16, torch.bfloat16)
# Newest first. The backward pass of flash-attn 4 starts at Hopper, supports heads of 256 only in part and has no cap.
FLASH = (
    Kernel(
        distribution="flash-attn-4",
        module="flash_attn.cute",
        function="flash_attn_varlen_func",
        capabilities=range(HOPPER, 12),
        largest_head_dim=128,
        softcap=False,
        dropout=False,
    ),
    Kernel(
        distribution="flash-attn-3",
        module="flash_attn_interface",
        function="flash_attn_varlen_func",
        capabilities=range(HOPPER, 10),
        largest_head_dim=256,
        softcap=True,
        dropout=False,
    ),
    Kernel(
        distribution="flash-attn",
        module="flash_attn",
        function="flash_attn_varlen_func",
        capabilities=range(AMPERE, NEWEST + 1),
        largest_head_dim=256,
        softcap=True,
        dropout=True,
    ),
)
VARLEN = Kernel(
    distribution="torch",
    module="torch.nn.attention.varlen",
    function="varlen_attn",
    capabilities=range(AMPERE, NEWEST + 1),
    largest_head_dim=256,
    softcap=False,
    dropout=False,
)
HOW_TO_INSTALL = "pip install flash-attn --no-build-isolation"
_ARGUMENTS = {"max_seqlen_q", "max_seqlen_k", "softmax_scale", "causal", "window_size", "softcap", "deterministic"}


def installed_flash(capability: int, head_dim: int, *, softcap: bool, dropout: bool) -> Kernel | None:
    """The newest installed release of flash-attn that serves this; None if there is none."""
    for kernel in FLASH:
        if kernel.serves(capability, head_dim, softcap=softcap, dropout=dropout) and is_installed(kernel):
            return kernel
    return None


@lru_cache
def is_installed(kernel: Kernel) -> bool:
    """Looks for the distribution, because flash-attn 2 and 4 share a package and 2 contains files of 4."""
    try:
        metadata.version(kernel.distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def load(kernel: Kernel) -> Callable[..., torch.Tensor]:
    """Returns the kernel's own function. Raises PQMError if it cannot be imported or is too old."""
    release = f"{kernel.distribution} {metadata.version(kernel.distribution)}"
    try:
        function = getattr(import_module(kernel.module), kernel.function)
    except (ImportError, AttributeError) as error:  # most often it was built for another PyTorch
        raise PQMError(
            f"{release} is installed but cannot be used ({error}): install it again for PyTorch {torch.__version__}, "
            "or choose the attention `varlen`"
        ) from error
    missing_arguments = _ARGUMENTS - set(inspect.signature(function).parameters) if kernel is not VARLEN else set()
    if missing_arguments:
        names = ", ".join(sorted(missing_arguments))
        raise PQMError(f"{release} is too old (it has no {names}): update it, or choose the attention `varlen`")
    return function


@lru_cache
def find(backend: str, device: int, head_dim: int, *, softcap: bool, dropout: bool) -> Callable[..., torch.Tensor]:
    """Returns the function that `VarlenAttention` calls, cached:

        (query [T, H, d], key [P, H_kv, d], value [P, H_kv, d], *, cu_queries [G+1] int32, cu_keys [G+1] int32,
         longest_query, longest_key, scale, window, softcap, dropout) -> [T, H, d]

    It is causal, and the last query of a sequence sees its last key, as in every release from 2.1 on. `backend` is
    "flash" or "varlen", `device` the number of a CUDA device. Raises ValueError for what no kernel supports.
    """
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
    """Wraps flash_attn_varlen_func of releases 2 to 4, whose shared arguments have the same names and meanings."""

    def call(query, key, value, *, cu_queries, cu_keys, longest_query, longest_key, scale, window, softcap, dropout):
        options: dict[str, Any] = {}
        if window is not None:  # the releases write "no window" differently
            options["window_size"] = (window - 1, 0)
        if softcap:
            options["softcap"] = softcap
        if dropout:
            options["dropout_p"] = dropout
        if torch.are_deterministic_algorithms_enabled():
            options["deterministic"] = True
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
            **options,
        )
        return out[0] if isinstance(out, tuple) else out  # some releases of 3 and 4 also return the log-sum-exp

    return call


def calling_varlen(function: Callable) -> Callable[..., torch.Tensor]:
    """Wraps varlen_attn of PyTorch 2.11 and later. 2.11 accepts fewer key heads; later versions need `enable_gqa`."""
    needs_enable_gqa = "enable_gqa" in inspect.signature(function).parameters

    def call(query, key, value, *, cu_queries, cu_keys, longest_query, longest_key, scale, window, softcap, dropout):
        grouped = {"enable_gqa": True} if needs_enable_gqa and query.shape[1] != key.shape[1] else {}
        # (-1, 0) is causality without a window
        sides = (-1 if window is None else window - 1, 0)
        return function(
            query,
            key,
            value,
            cu_seq_q=cu_queries,
            cu_seq_k=cu_keys,
            max_q=longest_query,
            max_k=longest_key,
            scale=scale,
            window_size=sides,
            **grouped,
        )

    return call
