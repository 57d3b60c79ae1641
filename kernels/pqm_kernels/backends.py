"""The choice of a backend: "eager" (plain PyTorch), "triton", or "auto", the better of the two."""

from collections.abc import Iterable

import torch

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def pick_backend(requested: str, device: torch.device, dtypes: Iterable[torch.dtype]) -> str:
    """The backend to use: `requested`, or for "auto" triton on CUDA if it supports all `dtypes`, else eager.

    Raises:
        ValueError: an unknown backend, or triton for a dtype that it does not support.
    """
    unsupported = [dtype for dtype in dtypes if dtype not in TRITON_DTYPES]
    if requested == "auto":
        return "triton" if device.type == "cuda" and not unsupported else "eager"
    if requested not in ("eager", "triton"):
        raise ValueError(f"unknown backend {requested!r}; known: auto, eager, triton")
    if requested == "triton" and unsupported:
        raise ValueError(f"the triton backend does not take {unsupported[0]}; use 'eager'")
    return requested
