"""Which backend computes: "eager" (plain PyTorch), "triton", or "auto", the better of the two."""

from collections.abc import Iterable

import torch

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def pick_backend(requested: str, device: torch.device, dtypes: Iterable[torch.dtype]) -> str:
    """`requested`, or for "auto" triton on CUDA where it has the `dtypes` of the inputs, else eager.

    Raises:
        ValueError: an unknown backend, or a dtype that triton, if it is requested, does not have.
    """
    missing = [dtype for dtype in dtypes if dtype not in TRITON_DTYPES]
    if requested == "auto":
        return "triton" if device.type == "cuda" and not missing else "eager"
    if requested not in ("eager", "triton"):
        raise ValueError(f"unknown backend {requested!r}; known: auto, eager, triton")
    if requested == "triton" and missing:
        raise ValueError(f"the triton backend does not take {missing[0]}; use 'eager'")
    return requested
