"""Zeros for a kernel whose programs count themselves: it finds them, and the last program leaves zeros again."""

import torch
import triton
from torch import Tensor

from pqm_kernels.launch import device_of

FEWEST = 1024
# By device and stream: calls on one stream never overlap. Calls on two would count each other's programs.
_kept: dict[tuple[int, int], Tensor] = {}


def zeroed(count: int, beside: Tensor) -> Tensor:
    """At least `count` int32 zeros on the device of `beside`, for a kernel on its current stream that leaves them zero.

    They are made and cleared once a stream, not once a call. Fresh ones are made for a CUDA graph, which clears them
    whenever it is replayed, as replays may overlap with each other and with calls; and on the CPU, where triton's
    interpreter can be stopped within a kernel.
    """
    device = beside.get_device()
    with device_of(beside):  # of whose stream this asks
        if device < 0 or torch.cuda.is_current_stream_capturing():
            return beside.new_zeros(count, dtype=torch.int32)
    # as the code that torch.compile generates asks for it: torch.cuda.current_stream() makes an object first
    stream = (device, torch._C._cuda_getCurrentRawStream(device))
    counters = _kept.get(stream)
    if counters is None or counters.numel() < count:
        counters = beside.new_zeros(max(FEWEST, triton.next_power_of_2(count)), dtype=torch.int32)
        if not _in_private_pool(counters):
            _kept[stream] = counters
    return counters


def _in_private_pool(tensor: Tensor) -> bool:
    """Whether somebody collects allocations in a pool of his own, as torch.compile does for CUDA graphs before it
    captures them, and misses what is kept there."""
    address = tensor.data_ptr()
    return torch.cuda.get_allocator_backend() == "native" and any(  # others have no such pools
        segment["segment_pool_id"] != (0, 0) and 0 <= address - segment["address"] < segment["total_size"]
        for segment in torch.cuda.memory_snapshot()
    )
