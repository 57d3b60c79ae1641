"""The backward kernels: the gradient of `hidden` in one launch over its rows, and one small reduction for the head.

A program of the first takes a group of rows and a slice of columns. Each row of the gradient is written once, zeros
included, and what the gradients of weight, norm weight and bias need goes to one partial sum a group; the second adds
the groups. Every sum has a fixed order, so that results repeat bit for bit. All arithmetic is float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pqm_kernels.forward import FUSE, columns_per_tile

ROWS_PER_TILE = 8
TILE_WIDTH = 1024  # bytes
# Groups of rows: constants, not the size of the GPU at hand, so that sums have the same order on every one.
MOST_GROUPS = 256
MOST_PARTIALS = 2**18  # a MiB of float32
GROUPS_PER_TILE = 32
COLUMNS_TO_ADD = 64  # of a program that adds the groups
FOUR = tl.constexpr(4)  # sums of rows that are added once, at the end: other threads hold other rows
OPTIONS = {**FUSE, "maxnreg": 128}


@triton.jit(do_not_specialize=["num_rows"])  # each batch has another number
def rows_kernel(
    hidden_ptr, stride_row, stride_column, order_ptr, first_step_ptr, dq_ptr, upstream_ptr, dot_ptr, rstd_ptr,
    weight_ptr, norm_weight_ptr, dhidden_ptr, partial_ptr, num_rows,
    D, HAS_NORM: tl.constexpr, NEEDS_HIDDEN: tl.constexpr, NEEDS_HEAD: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """With q = RMSNorm(row) . weight + bias: dq/drow, summed over the steps of each row, and the group's sums of
    dq * row / rms (D of them, group by group) and of dq (one a group, behind them)."""
    column = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)  # neighbours in time are neighbours in memory
    group = tl.program_id(1).to(tl.int64)
    weight = tl.load(weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
    if HAS_NORM:
        weight *= tl.load(norm_weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
    upstream = tl.load(upstream_ptr)
    of_weight = tl.zeros([FOUR, BLOCK_D], tl.float32)
    of_bias = 0.0
    for first in range(group * BLOCK_R, num_rows, tl.num_programs(1) * BLOCK_R):
        row = (first + tl.arange(0, BLOCK_R)).to(tl.int64)
        begin = tl.load(first_step_ptr + row, mask=row < num_rows, other=0)
        end = tl.load(first_step_ptr + row + 1, mask=row < num_rows, other=0)
        # The steps of a row have one score: their gradients are summed before the row is touched.
        dq = tl.zeros([BLOCK_R], tl.float32)
        for done in range(0, tl.max(end - begin, 0), BLOCK_R):
            place = begin[:, None] + done + tl.arange(0, BLOCK_R)[None, :]
            step = tl.load(order_ptr + place, mask=place < end[:, None], other=0)
            dq += tl.sum(tl.load(dq_ptr + step, mask=place < end[:, None], other=0.0), 1)
        dq *= upstream
        used = begin < end
        if HAS_NORM or NEEDS_HEAD:
            read = used[:, None] & (column < D)[None, :]
            pointers = hidden_ptr + row[:, None] * stride_row + column[None, :].to(tl.int64) * stride_column
            x = tl.load(pointers, mask=read, other=0.0).to(tl.float32)
        gradient = dq[:, None] * weight[None, :]
        if HAS_NORM:
            a_step = tl.load(order_ptr + begin, mask=used, other=0)
            rstd = tl.load(rstd_ptr + a_step, mask=used, other=0.0)
            dot = tl.load(dot_ptr + a_step, mask=used, other=0.0)
            x *= rstd[:, None]
            gradient = (gradient - x * (dq * dot / D)[:, None]) * rstd[:, None]
        if NEEDS_HIDDEN:
            target = dhidden_ptr + row[:, None] * D + column[None, :]
            kept = (row < num_rows)[:, None] & (column < D)[None, :]
            tl.store(target, gradient, mask=kept)
        if NEEDS_HEAD:
            of_weight += tl.sum(tl.reshape(dq[:, None] * x, [BLOCK_R // FOUR, FOUR, BLOCK_D]), 0)
            of_bias += tl.sum(dq, 0)
    if NEEDS_HEAD:
        tl.store(partial_ptr + group * D + column, tl.sum(of_weight, 0), mask=column < D)
        if tl.program_id(0) == 0:
            tl.store(partial_ptr + tl.num_programs(1).to(tl.int64) * D + group, of_bias)


@triton.jit(do_not_specialize=["groups"])
def head_kernel(
    partial_ptr, weight_ptr, norm_weight_ptr, dweight_ptr, dnorm_weight_ptr, dbias_ptr, groups,
    D, HAS_NORM: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Adds the groups. As q = sum_d (row_d / rms) norm_weight_d weight_d + bias, one sum serves both factors."""
    column = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    of_weight = tl.zeros([BLOCK_D], tl.float32)
    of_bias = 0.0
    for first in range(0, groups, BLOCK_G):
        group = first + tl.arange(0, BLOCK_G)
        read = (group < groups)[:, None] & (column < D)[None, :]
        of_weight += tl.sum(tl.load(partial_ptr + group[:, None] * D + column[None, :], mask=read, other=0.0), 0)
        of_bias += tl.sum(tl.load(partial_ptr + groups * D + group, mask=group < groups, other=0.0), 0)
    if HAS_NORM:
        weight = tl.load(weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
        norm_weight = tl.load(norm_weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
        tl.store(dnorm_weight_ptr + column, of_weight * weight, mask=column < D)
        of_weight *= norm_weight
    tl.store(dweight_ptr + column, of_weight, mask=column < D)
    if tl.program_id(0) == 0:
        tl.store(dbias_ptr, of_bias)


def backward(
    upstream: Tensor, dq: Tensor, hidden: Tensor, order: Tensor, first_step: Tensor, dot: Tensor, rstd: Tensor,
    weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, needs_hidden: bool, needs_head: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Launches the kernels: gradients of hidden [T, D], weight [D], bias [1] and norm_weight [D], each in its dtype;
    those not needed, or of what is None, are empty. `upstream` is the gradient of the loss, `dq` [S] by the scores."""
    num_rows, width = hidden.shape

    def empty_like(tensor: Tensor, needed: bool) -> Tensor:
        return torch.empty(tensor.shape if needed else 0, dtype=tensor.dtype, device=tensor.device)

    dhidden = empty_like(hidden, needs_hidden)
    dweight = empty_like(weight, needs_head)
    dbias = empty_like(weight[:1] if bias is None else bias, needs_head)
    dnorm_weight = empty_like(weight[:0] if norm_weight is None else norm_weight, needs_head)
    block = columns_per_tile(hidden, TILE_WIDTH)
    groups = max(1, min(MOST_GROUPS, triton.cdiv(num_rows, ROWS_PER_TILE), MOST_PARTIALS // (width + 1)))
    partial = torch.empty(groups * (width + 1) if needs_head else 0, dtype=torch.float32, device=hidden.device)
    with torch.cuda.device_of(hidden):  # triton launches on the current device
        rows_kernel[(triton.cdiv(width, block), groups)](
            hidden, *hidden.stride(), order, first_step, dq, upstream, dot, rstd,
            weight, norm_weight, dhidden, partial, num_rows,
            width, HAS_NORM=norm_weight is not None, NEEDS_HIDDEN=needs_hidden, NEEDS_HEAD=needs_head,
            BLOCK_R=ROWS_PER_TILE, BLOCK_D=block, **OPTIONS,
        )  # fmt: skip
        if needs_head:
            head_kernel[(triton.cdiv(width, COLUMNS_TO_ADD),)](
                partial, weight, norm_weight, dweight, dnorm_weight, dbias, groups,
                width, HAS_NORM=norm_weight is not None, BLOCK_G=GROUPS_PER_TILE, BLOCK_D=COLUMNS_TO_ADD, **OPTIONS,
            )  # fmt: skip
    return dhidden, dweight, dbias, dnorm_weight
