"""The forward kernel: scores, losses, their sum and their gradient by the scores, in one launch.

A program scores up to PART steps, each from its row of `hidden`, read once, with the RMSNorm fused. Programs of two
kinds share the steps: one per trajectory takes its first PART steps, and one per window of PART consecutive steps
takes those in it that are further down in their trajectory: so a long trajectory is scored by many programs and delays
no other. A window has such steps of one trajectory at most, the one its first step belongs to. Whichever program is
the last of its trajectory computes the loss from the scores, and whichever is the last of all adds up the losses; as
they read all of them in order, results do not depend on which one it was.
"""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pqm_kernels.fused_step_loss.counters import zeroed
from pqm_kernels.fused_step_loss.device_losses import trajectory_loss
from pqm_kernels.launch import of_aligned, of_tensor, with_options
from pqm_kernels.losses import LOSSES

PART = 64
STEPS_PER_TILE = 8  # rows of hidden gathered together: an average trajectory
LOSSES_PER_SWEEP = 1024  # of their sum


class Program(NamedTuple):
    """How a program takes its steps."""

    options: dict[str, int]
    """Of the compiler. Without `maxnreg` it spills a few registers for an occupancy that the gather does not need."""
    tile_width: int
    """Bytes of a row."""
    steps_per_sweep: int
    """Of a loss: so few for two warps that each can do all of it, and none waits for the other."""


# Below so many programs, two for each multiprocessor of an H100, little runs beside a program that waits for memory:
# so it asks for twice as much at a time. The sizes decide, not the GPU at hand: sums have one order on every one.
FEW_PROGRAMS = 264
OF_FEW = Program({"num_warps": 2, "maxnreg": 255}, tile_width=1024, steps_per_sweep=32)
OF_MANY = Program({"num_warps": 1, "maxnreg": 128}, tile_width=512, steps_per_sweep=64)
EIGHT = tl.constexpr(8)  # columns that are summed in one thread
STAGES = tl.constexpr(3)  # tiles on their way at a time
# Multiply-adds in one instruction: stated, as the default differs between versions of triton.
FUSE = {"enable_fp_fusion": True}


@triton.jit
def _count_up_to(values_ptr, num_values, bound, BLOCK: tl.constexpr):
    """How many of the rising values are <= bound; each turn narrows the range BLOCK times."""
    low = tl.full([], 0, tl.int64)
    high = low + num_values
    while low < high:  # values below low are counted, those from high on are not
        stride = tl.cdiv(high - low, BLOCK)
        at = low + stride * (tl.arange(0, BLOCK) + 1) - 1
        value = tl.load(values_ptr + at, mask=at < high, other=0)
        counted = tl.sum(((at < high) & (value <= bound)).to(tl.int32), 0)
        low += stride * counted
        high = tl.minimum(high, low + stride - 1)
    return low


@triton.jit
def _score_steps(
    hidden_ptr, stride_row, stride_column, step_index_ptr, weight_ptr, bias_ptr, norm_weight_ptr,
    q_ptr, dot_ptr, rstd_ptr, start, end, norm_eps,
    D, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Stores q = RMSNorm(hidden[step_index]) . weight + bias of the steps start..end and, with a norm, q - bias and
    1 / rms, which the backward needs."""
    bias = tl.load(bias_ptr).to(tl.float32) if bias_ptr is not None else 0.0
    for first in range(start, end, BLOCK_S):
        step = first + tl.arange(0, BLOCK_S)
        row = tl.load(step_index_ptr + step, mask=step < end, other=0).to(tl.int64)
        # One sum for EIGHT neighbouring columns, which one thread holds: a sum a column would fill the registers.
        dot = tl.zeros([BLOCK_S, BLOCK_D // EIGHT], tl.float32)
        square = tl.zeros([BLOCK_S, BLOCK_D // EIGHT], tl.float32)
        for left in tl.range(0, D, BLOCK_D, num_stages=STAGES):
            column = left + tl.arange(0, BLOCK_D)
            weight = tl.load(weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
            pointers = hidden_ptr + row[:, None] * stride_row + column[None, :].to(tl.int64) * stride_column
            read = (step < end)[:, None] & (column < D)[None, :]
            x = tl.load(pointers, mask=read, other=0.0).to(tl.float32)
            if norm_weight_ptr is not None:
                weight *= tl.load(norm_weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
                square += tl.sum(tl.reshape(x * x, [BLOCK_S, BLOCK_D // EIGHT, EIGHT]), 2)
            dot += tl.sum(tl.reshape(x * weight[None, :], [BLOCK_S, BLOCK_D // EIGHT, EIGHT]), 2)
        q = tl.sum(dot, 1)
        if norm_weight_ptr is not None:
            rstd = tl.rsqrt(tl.sum(square, 1) / D + norm_eps)
            q *= rstd
            tl.store(rstd_ptr + step, rstd, mask=step < end)
            tl.store(dot_ptr + step, q, mask=step < end)
        tl.store(q_ptr + step, q + bias, mask=step < end)


@with_options(**FUSE)
@triton.jit(
    do_not_specialize=["num_steps", "num_trajectories"],  # each batch has others
    do_not_specialize_on_alignment=[
        "step_index_ptr", "labels_ptr", "cu_steps_ptr", "bias_ptr", "normalizer_ptr", "loss_ptr", "q_ptr", "work_ptr",
        "counters_ptr",
    ],
)  # fmt: skip
def forward_kernel(
    hidden_ptr, weight_ptr, bias_ptr, norm_weight_ptr, step_index_ptr, labels_ptr, cu_steps_ptr, normalizer_ptr,
    loss_ptr, q_ptr, work_ptr, counters_ptr, stride_row, stride_column, D, num_steps, num_trajectories,
    zeta, norm_eps, scale, LOSS: tl.constexpr, PART: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SWEEP: tl.constexpr, BLOCK_LOSSES: tl.constexpr,
):  # fmt: skip
    """First come the programs of windows, those of long trajectories, then the programs of trajectories. The first
    counter is of programs that are done; the others are of parts that are, each of one long trajectory."""
    dq_ptr = work_ptr
    dot_ptr = dq_ptr + num_steps
    rstd_ptr = dot_ptr + num_steps
    losses_ptr = dot_ptr if norm_weight_ptr is None else rstd_ptr + num_steps
    x_ptr = losses_ptr + num_trajectories
    num_windows = tl.maximum(tl.cdiv(num_steps, PART) - 1, 0)
    program = tl.program_id(0).to(tl.int64)
    is_window = program < num_windows
    # The first PART steps are no window: none of them can be further down in its trajectory.
    window = (program + 1) * PART
    trajectory = _count_up_to(cu_steps_ptr + 1, num_trajectories, window, PART) if is_window else program - num_windows
    exists = trajectory < num_trajectories  # there is always a program, for the sum
    start = tl.load(cu_steps_ptr + trajectory, mask=exists, other=0).to(tl.int64)
    end = tl.load(cu_steps_ptr + trajectory + 1, mask=exists, other=0).to(tl.int64)
    own_first = start
    own_end = tl.minimum(end, start + PART)
    if is_window:
        own_first = tl.maximum(start + PART, window)
        own_end = tl.minimum(end, window + PART)
    _score_steps(
        hidden_ptr, stride_row, stride_column, step_index_ptr, weight_ptr, bias_ptr, norm_weight_ptr,
        q_ptr, dot_ptr, rstd_ptr, own_first, own_end, norm_eps, D, BLOCK_S, BLOCK_D,
    )  # fmt: skip
    if normalizer_ptr is not None:
        scale /= tl.load(normalizer_ptr).to(tl.float32)
    tl.debug_barrier()  # other threads read q than wrote it
    is_last = (end - start <= PART) & (program >= num_windows)
    if (end - start > PART) & (own_first < own_end):
        # The barrier and the atomic together publish this program's scores and receive those of the others.
        parts_ptr = counters_ptr + 1 + start // PART
        done_before = tl.atomic_add(parts_ptr, 1, sem="acq_rel", scope="gpu")
        is_last = done_before == (end - 1) // PART - (start + PART) // PART + 1
        if is_last:
            tl.store(parts_ptr, 0)
    if is_last:
        loss = trajectory_loss(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, zeta, scale, LOSS, BLOCK_SWEEP)
        tl.store(losses_ptr + trajectory, loss, mask=exists)
    tl.debug_barrier()  # the same for the loss
    if tl.atomic_add(counters_ptr, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1:
        total = tl.zeros([BLOCK_LOSSES], tl.float32)
        for first in range(0, num_trajectories, BLOCK_LOSSES):
            place = first + tl.arange(0, BLOCK_LOSSES)
            total += tl.load(losses_ptr + place, mask=place < num_trajectories, other=0.0)
        tl.store(loss_ptr, tl.sum(total, 0))
        tl.store(counters_ptr, 0)


@cache
def columns_per_tile(tile_width: int, element_size: int, width: int, stride_row: int, stride_column: int) -> int:
    """A tile of `tile_width` bytes, or of the next power of two of columns if fewer are there."""
    if stride_column != 1 or stride_row % 16 or width % 16:
        tile_width //= 4  # element by element, a tile takes many more registers
    return min(tile_width // element_size, max(16, triton.next_power_of_2(width)))


def work_size(num_steps: int, num_trajectories: int, has_norm: bool, loss: str) -> int:
    """Elements of `work`: the gradient of the loss by the scores; with a norm score - bias and 1 / rms; the losses of
    the trajectories; what some losses keep for each step. The backward needs the first three."""
    return (1 + 2 * has_norm + LOSSES[loss].chained) * num_steps + num_trajectories


def forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, step_index: Tensor,
    labels: Tensor, cu_steps: Tensor, normalizer: Tensor | None, loss: str, zeta: float, norm_eps: float, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Launches the kernel. The sum of the trajectory losses times `scale`, over `normalizer` if there is one, the
    scores [S], and `work` (see `work_size`)."""
    width = hidden.shape[1]
    num_steps, num_trajectories = step_index.shape[0], cu_steps.shape[0] - 1
    stride_row, stride_column = hidden.stride()
    num_parts = -(-num_steps // PART)
    programs = max(num_parts - 1, 0) + max(num_trajectories, 1)
    chosen = OF_FEW if programs < FEW_PROGRAMS else OF_MANY
    block_d = columns_per_tile(chosen.tile_width, hidden.dtype.itemsize, width, stride_row, stride_column)
    constants = (loss, PART, STEPS_PER_TILE, block_d, chosen.steps_per_sweep, LOSSES_PER_SWEEP)
    key = (
        *chosen.options.values(), *constants, stride_row, stride_column, width, of_aligned(hidden),
        of_aligned(weight), of_tensor(bias), of_aligned(norm_weight), step_index.dtype, labels.dtype, cu_steps.dtype,
        of_tensor(normalizer),
    )  # fmt: skip
    size = work_size(num_steps, num_trajectories, norm_weight is not None, loss)
    work = hidden.new_empty(size, dtype=torch.float32)
    q, total = work.new_empty(num_steps), work.new_empty(())
    arguments = (
        hidden, weight, bias, norm_weight, step_index, labels, cu_steps, normalizer, total, q, work,
        zeroed(1 + num_parts, hidden), stride_row, stride_column, width, num_steps, num_trajectories,
        zeta, norm_eps, scale, *constants,
    )  # fmt: skip
    forward_kernel.launch(hidden, key, (programs, 1, 1), arguments, **chosen.options)
    return total, q, work
