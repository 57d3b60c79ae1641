"""The backward kernels: the gradient of `hidden` in one launch over its rows, and one small reduction for the head.

A program of the first takes a group of rows and a slice of columns. Each row of the gradient is written once, zeros
included, and what the gradients of weight, norm weight and bias need goes to one partial sum a group; the second adds
the groups. Every sum has a fixed order, so that results repeat bit for bit. All arithmetic is float32.
"""

import triton
import triton.language as tl
from torch import Tensor

from pqm_kernels.fused_step_loss.forward import FUSE, columns_per_tile
from pqm_kernels.launch import of_aligned, of_tensor, with_options

ROWS_PER_TILE = 8
TILE_WIDTH = 1024  # bytes
# Groups of rows: constants, not the size of the GPU at hand, so that sums have the same order on every one.
MOST_GROUPS = 256
MOST_PARTIALS = 2**18  # a MiB of float32
GROUPS_PER_TILE = 32
COLUMNS_TO_ADD = 64  # of a program that adds the groups
FOUR = tl.constexpr(4)  # sums of rows that are added once, at the end: other threads hold other rows
OPTIONS = {**FUSE, "num_warps": 4, "maxnreg": 128}


@with_options(**OPTIONS)
@triton.jit(
    do_not_specialize=["num_rows", "num_steps"],  # each batch has others
    do_not_specialize_on_alignment=[
        "weight_ptr", "norm_weight_ptr", "order_ptr", "first_step_ptr", "upstream_ptr", "work_ptr",
    ],
)  # fmt: skip
def rows_kernel(
    hidden_ptr, weight_ptr, norm_weight_ptr, order_ptr, first_step_ptr, upstream_ptr, work_ptr, dhidden_ptr,
    partial_ptr, stride_row, stride_column, D, num_rows, num_steps, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """With q = RMSNorm(row) . weight + bias: dq/drow, summed over the steps of each row, and the group's sums of
    dq * row / rms (D of them, group by group) and of dq (one a group, behind them). Either is left out where its
    pointer is None."""
    column = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)  # neighbours in time are neighbours in memory
    group = tl.program_id(1).to(tl.int64)
    dq_ptr = work_ptr
    dot_ptr = dq_ptr + num_steps
    rstd_ptr = dot_ptr + num_steps
    weight = tl.load(weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
    if norm_weight_ptr is not None:
        weight *= tl.load(norm_weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
    upstream = tl.load(upstream_ptr)
    of_weight = tl.zeros([FOUR, BLOCK_D], tl.float32)
    of_bias = 0.0
    # Where the steps of a tile stand is read a tile ahead: what is read by it need not wait.
    row = group * BLOCK_R + tl.arange(0, BLOCK_R)
    begin = tl.load(first_step_ptr + row, mask=row < num_rows, other=0)
    end = tl.load(first_step_ptr + row + 1, mask=row < num_rows, other=0)
    step = tl.load(order_ptr + begin, mask=begin < end, other=0)
    for first in range(group * BLOCK_R, num_rows, tl.num_programs(1) * BLOCK_R):
        row = (first + tl.arange(0, BLOCK_R)).to(tl.int64)
        next_row = row + tl.num_programs(1) * BLOCK_R
        next_begin = tl.load(first_step_ptr + next_row, mask=next_row < num_rows, other=0)
        next_end = tl.load(first_step_ptr + next_row + 1, mask=next_row < num_rows, other=0)
        used = begin < end
        if norm_weight_ptr is not None or partial_ptr is not None:
            read = used[:, None] & (column < D)[None, :]
            pointers = hidden_ptr + row[:, None] * stride_row + column[None, :].to(tl.int64) * stride_column
            x = tl.load(pointers, mask=read, other=0.0).to(tl.float32)
        if norm_weight_ptr is not None:
            rstd = tl.load(rstd_ptr + step, mask=used, other=0.0)
            dot = tl.load(dot_ptr + step, mask=used, other=0.0)
        # The steps of a row have one score: their gradients are summed before the row is touched.
        dq = tl.load(dq_ptr + step, mask=used, other=0.0)
        step = tl.load(order_ptr + next_begin, mask=next_begin < next_end, other=0)
        for done in range(1, tl.max(end - begin, 0), BLOCK_R):
            place = begin[:, None] + done + tl.arange(0, BLOCK_R)[None, :]
            other_step = tl.load(order_ptr + place, mask=place < end[:, None], other=0)
            dq += tl.sum(tl.load(dq_ptr + other_step, mask=place < end[:, None], other=0.0), 1)
        dq *= upstream
        gradient = dq[:, None] * weight[None, :]
        if norm_weight_ptr is not None:
            x *= rstd[:, None]
            gradient = (gradient - x * (dq * dot / D)[:, None]) * rstd[:, None]
        if dhidden_ptr is not None:
            target = dhidden_ptr + row[:, None] * D + column[None, :]
            kept = (row < num_rows)[:, None] & (column < D)[None, :]
            tl.store(target, gradient, mask=kept)
        if partial_ptr is not None:
            of_weight += tl.sum(tl.reshape(dq[:, None] * x, [BLOCK_R // FOUR, FOUR, BLOCK_D]), 0)
            of_bias += tl.sum(dq, 0)
        begin, end = next_begin, next_end
    if partial_ptr is not None:
        tl.store(partial_ptr + group * D + column, tl.sum(of_weight, 0), mask=column < D)
        if tl.program_id(0) == 0:
            tl.store(partial_ptr + tl.num_programs(1).to(tl.int64) * D + group, of_bias)


@with_options(**OPTIONS)
@triton.jit(do_not_specialize=["groups"], do_not_specialize_on_alignment=["weight_ptr", "norm_weight_ptr"])
def head_kernel(
    partial_ptr, weight_ptr, norm_weight_ptr, dweight_ptr, dbias_ptr, dnorm_weight_ptr, D, groups,
    BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr,
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
    if norm_weight_ptr is not None:
        weight = tl.load(weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
        norm_weight = tl.load(norm_weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
        tl.store(dnorm_weight_ptr + column, of_weight * weight, mask=column < D)
        of_weight *= norm_weight
    tl.store(dweight_ptr + column, of_weight, mask=column < D)
    if tl.program_id(0) == 0:
        tl.store(dbias_ptr, of_bias)


def backward(
    upstream: Tensor, work: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None,
    order: Tensor, first_step: Tensor, needs_hidden: bool, needs_head: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Launches the kernels: gradients of hidden [T, D], weight [D], bias [1] and norm_weight [D], each in its dtype;
    those not needed, or of what is None, are empty. `upstream` is the gradient of the loss, `work` the forward's."""
    num_rows, width = hidden.shape
    stride_row, stride_column = hidden.stride()

    of_head = width if needs_head else 0
    dhidden = hidden.new_empty(num_rows if needs_hidden else 0, width)
    dweight = weight.new_empty(of_head)
    dbias = (weight if bias is None else bias).new_empty(1 if needs_head else 0)
    dnorm_weight = weight.new_empty(0) if norm_weight is None else norm_weight.new_empty(of_head)
    block = columns_per_tile(TILE_WIDTH, hidden.dtype.itemsize, width, stride_row, stride_column)
    groups = max(1, min(MOST_GROUPS, -(-num_rows // ROWS_PER_TILE), MOST_PARTIALS // (width + 1)))
    partial_sums = work.new_empty(groups * (width + 1)) if needs_head else None
    key = (
        ROWS_PER_TILE, block, stride_row, stride_column, width,
        of_aligned(hidden), weight.dtype, of_tensor(norm_weight), needs_hidden, needs_head,
    )  # fmt: skip
    arguments = (
        hidden, weight, norm_weight, order, first_step, upstream, work, dhidden if needs_hidden else None,
        partial_sums, stride_row, stride_column, width, num_rows, order.shape[0], ROWS_PER_TILE, block,
    )  # fmt: skip
    rows_kernel.launch(hidden, key, (-(-width // block), groups, 1), arguments)
    if needs_head:
        head_key = (width, weight.dtype, of_tensor(norm_weight), dbias.dtype)
        head_arguments = (
            partial_sums, weight, norm_weight, dweight, dbias, dnorm_weight, width, groups,
            GROUPS_PER_TILE, COLUMNS_TO_ADD,
        )  # fmt: skip
        head_kernel.launch(hidden, head_key, (-(-width // COLUMNS_TO_ADD), 1, 1), head_arguments)
    return dhidden, dweight, dbias, dnorm_weight
