"""The backward kernels: the gradient of `hidden` in one launch over its rows, and one small reduction for the head.

A program of the first kernel takes a group of rows and a slice of columns. It writes each row of the gradient once,
zeros included, and one partial sum for its group, for the gradients of weight, norm weight and bias. The second kernel
adds the groups. Every sum has a fixed order, so that results repeat bit for bit. All arithmetic is float32.
"""

import triton
import triton.language as tl
from torch import Tensor

from pqm_kernels.launch import FUSED_MULTIPLY_ADD, aligned_key, dtype_key, with_options
from pqm_kernels.tiles import columns_per_tile

ROWS_PER_TILE = 8
TILE_WIDTH = 1024  # bytes
# Groups of rows. These are constants, not derived from the GPU, so that sums have the same order on every GPU.
MOST_GROUPS = 256
MOST_PARTIALS = 2**18  # a MiB of float32
GROUPS_PER_TILE = 32
COLUMNS_TO_ADD = 64  # columns for which one program adds the groups
PARTIAL_ROWS = tl.constexpr(4)  # sums over rows, held by different threads and added once, at the end
OPTIONS = {**FUSED_MULTIPLY_ADD, "num_warps": 4, "maxnreg": 128}


@with_options(**OPTIONS)
@triton.jit(
    do_not_specialize=["num_rows", "num_steps"],  # they differ from batch to batch
    do_not_specialize_on_alignment=[
        "weight_ptr", "norm_weight_ptr", "order_ptr", "first_step_ptr", "upstream_ptr", "work_ptr",
    ],
)  # fmt: skip
def rows_kernel(
    hidden_ptr, weight_ptr, norm_weight_ptr, order_ptr, first_step_ptr, upstream_ptr, work_ptr, dhidden_ptr,
    partial_ptr, stride_row, stride_column, D, num_rows, num_steps, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Computes the gradient of each row, summed over its steps, and the partial sums of each group, for
    q = RMSNorm(row) . weight + bias.

    `partial_ptr` gets [groups, D] sums of dq * row / rms, followed by [groups] sums of dq. `dhidden_ptr` and
    `partial_ptr` may be None.
    """
    column = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)  # programs that run together read adjacent memory
    group = tl.program_id(1).to(tl.int64)
    dq_ptr = work_ptr
    dot_ptr = dq_ptr + num_steps
    rstd_ptr = dot_ptr + num_steps
    weight = tl.load(weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
    if norm_weight_ptr is not None:
        weight *= tl.load(norm_weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
    upstream = tl.load(upstream_ptr)
    weight_sum = tl.zeros([PARTIAL_ROWS, BLOCK_D], tl.float32)
    bias_sum = 0.0
    # The steps of a tile of rows are read one tile ahead, so that the loads that depend on them need not wait.
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
        # All steps of a row have the same score, so their gradients are summed before the row is touched.
        dq = tl.load(dq_ptr + step, mask=used, other=0.0)
        step = tl.load(order_ptr + next_begin, mask=next_begin < next_end, other=0)
        for done in range(1, tl.max(end - begin, 0), BLOCK_R):
            position = begin[:, None] + done + tl.arange(0, BLOCK_R)[None, :]
            other_step = tl.load(order_ptr + position, mask=position < end[:, None], other=0)
            dq += tl.sum(tl.load(dq_ptr + other_step, mask=position < end[:, None], other=0.0), 1)
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
            weight_sum += tl.sum(tl.reshape(dq[:, None] * x, [BLOCK_R // PARTIAL_ROWS, PARTIAL_ROWS, BLOCK_D]), 0)
            bias_sum += tl.sum(dq, 0)
        begin, end = next_begin, next_end
    if partial_ptr is not None:
        tl.store(partial_ptr + group * D + column, tl.sum(weight_sum, 0), mask=column < D)
        if tl.program_id(0) == 0:
            tl.store(partial_ptr + tl.num_programs(1).to(tl.int64) * D + group, bias_sum)


@with_options(**OPTIONS)
@triton.jit(do_not_specialize=["groups"], do_not_specialize_on_alignment=["weight_ptr", "norm_weight_ptr"])
def head_kernel(
    partial_ptr, weight_ptr, norm_weight_ptr, dweight_ptr, dbias_ptr, dnorm_weight_ptr, D, groups,
    BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Adds the groups. As q = sum_d (row_d / rms) norm_weight_d weight_d + bias, the gradients of weight and
    norm_weight come from the same sum."""
    column = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    weight_sum = tl.zeros([BLOCK_D], tl.float32)
    bias_sum = 0.0
    for first in range(0, groups, BLOCK_G):
        group = first + tl.arange(0, BLOCK_G)
        read = (group < groups)[:, None] & (column < D)[None, :]
        weight_sum += tl.sum(tl.load(partial_ptr + group[:, None] * D + column[None, :], mask=read, other=0.0), 0)
        bias_sum += tl.sum(tl.load(partial_ptr + groups * D + group, mask=group < groups, other=0.0), 0)
    if norm_weight_ptr is not None:
        weight = tl.load(weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
        norm_weight = tl.load(norm_weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
        tl.store(dnorm_weight_ptr + column, weight_sum * weight, mask=column < D)
        weight_sum *= norm_weight
    tl.store(dweight_ptr + column, weight_sum, mask=column < D)
    if tl.program_id(0) == 0:
        tl.store(dbias_ptr, bias_sum)


def backward(
    upstream: Tensor, work: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None,
    order: Tensor, first_step: Tensor, needs_hidden: bool, needs_head: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Launches the kernels. Returns the gradients of hidden [T, D], weight [D], bias [1] and norm_weight [D], each in
    the dtype of its input, and empty if it is not needed or its input is None.

    `upstream` is the gradient of the loss, `work` is from the forward (see `work_size`).
    """
    num_rows, width = hidden.shape
    stride_row, stride_column = hidden.stride()
    head_width = width if needs_head else 0
    dhidden = hidden.new_empty(num_rows if needs_hidden else 0, width)
    dweight = weight.new_empty(head_width)
    dbias = (weight if bias is None else bias).new_empty(1 if needs_head else 0)
    dnorm_weight = weight.new_empty(0) if norm_weight is None else norm_weight.new_empty(head_width)
    block = columns_per_tile(TILE_WIDTH, hidden.dtype.itemsize, width, stride_row, stride_column)
    groups = max(1, min(MOST_GROUPS, -(-num_rows // ROWS_PER_TILE), MOST_PARTIALS // (width + 1)))
    partial_sums = work.new_empty(groups * (width + 1)) if needs_head else None
    key = (
        ROWS_PER_TILE, block, stride_row, stride_column, width,
        aligned_key(hidden), weight.dtype, dtype_key(norm_weight), needs_hidden, needs_head,
    )  # fmt: skip
    arguments = (
        hidden, weight, norm_weight, order, first_step, upstream, work, dhidden if needs_hidden else None,
        partial_sums, stride_row, stride_column, width, num_rows, order.shape[0], ROWS_PER_TILE, block,
    )  # fmt: skip
    rows_kernel.launch(hidden, key, (-(-width // block), groups, 1), arguments)
    if needs_head:
        head_key = (width, weight.dtype, dtype_key(norm_weight), dbias.dtype)
        head_arguments = (
            partial_sums, weight, norm_weight, dweight, dbias, dnorm_weight, width, groups,
            GROUPS_PER_TILE, COLUMNS_TO_ADD,
        )  # fmt: skip
        head_kernel.launch(hidden, head_key, (-(-width // COLUMNS_TO_ADD), 1, 1), head_arguments)
    return dhidden, dweight, dbias, dnorm_weight
