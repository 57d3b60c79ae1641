"""The Triton kernel of `pqm_kernels.gather_rows`: it sums the gradients of the copies of each row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pqm_kernels.launch import NO_FUSED_MULTIPLY_ADD, aligned_key, with_options
from pqm_kernels.tiles import columns_per_tile

COPIES_PER_TILE = 4
TILE_WIDTH = 1024  # bytes of a copy: two loads of 16 bytes for each thread of the only warp
OPTIONS = {**NO_FUSED_MULTIPLY_ADD, "num_warps": 1}


@with_options(**OPTIONS)
@triton.jit(do_not_specialize_on_alignment=["order_ptr", "first_ptr"])
def sum_rows_kernel(source_ptr, order_ptr, first_ptr, target_ptr, W, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr):
    """A program takes one row and a slice of its columns, and reads BLOCK_S copies at a time; most rows have one or
    two. It writes the row once. Sums are float32 and have a fixed order."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin = tl.load(first_ptr + row)
    end = tl.load(first_ptr + row + 1)
    total = tl.zeros([BLOCK_D], tl.float32)
    for start in range(begin, end, BLOCK_S):
        position = start + tl.arange(0, BLOCK_S)
        copy = tl.load(order_ptr + position, mask=position < end, other=0).to(tl.int64)
        read = (position < end)[:, None] & (column < W)[None, :]
        total += tl.sum(
            tl.load(source_ptr + copy[:, None] * W + column[None, :], mask=read, other=0.0).to(tl.float32), 0
        )
    tl.store(target_ptr + row * W + column, total, mask=column < W)


def sum_rows(source: Tensor, order: Tensor, first: Tensor) -> Tensor:
    """Launches the kernel. Returns [T, W] in the dtype of `source` [P, W], which must be contiguous: row t is the sum
    of source[order[first[t] : first[t + 1]]]."""
    num_rows, width = len(first) - 1, source.shape[1]
    target = torch.empty(num_rows, width, dtype=source.dtype, device=source.device)
    if target.numel():
        block = columns_per_tile(TILE_WIDTH, source.dtype.itemsize, width, width, 1)
        key = (block, width, aligned_key(source))
        arguments = (source, order, first, target, width, COPIES_PER_TILE, block)
        sum_rows_kernel.launch(source, key, (num_rows, triton.cdiv(width, block), 1), arguments)
    return target
