"""The memory that one call needs on a GPU."""

import gc
from collections.abc import Callable

import torch
from torch import Tensor


def extra_bytes(call: Callable[[], tuple[Tensor, ...]]) -> int:
    """The most memory that a call holds at any time, in bytes as requested (before the allocator rounds them up),
    without its inputs and outputs."""
    call()
    torch.cuda.synchronize()
    gc.collect()  # what is freed during the call would count as memory that the call gave back
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    torch.cuda.reset_peak_memory_stats()
    outputs = call()
    torch.cuda.synchronize()
    peak = torch.cuda.memory_stats()["requested_bytes.all.peak"]
    return peak - before - sum(output.numel() * output.element_size() for output in outputs)
