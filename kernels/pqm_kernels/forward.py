"""The forward kernel: scores, losses and the gradient of the losses by the scores, in one launch.

A program scores up to PART steps, each from its row of `hidden`, read once, with the RMSNorm fused. Programs of two
kinds share the steps: one per trajectory takes its first PART steps, and one per window of PART consecutive steps
takes those in it that are further down in their trajectory: so a long trajectory is scored by many programs and delays
no other. A window has such steps of one trajectory at most, the one its first step belongs to. Whichever program is
the last of its trajectory computes the loss from the scores; as that reads all of them in order, results do not depend
on which one it was.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pqm_kernels.losses import CHAINED, trajectory_loss

PART = 64
STEPS_PER_TILE = 8  # rows of hidden gathered together: an average trajectory
TILE_WIDTH = 512  # bytes
STEPS_PER_SWEEP = 64  # of the losses
EIGHT = tl.constexpr(8)  # columns that are summed in one thread
STAGES = tl.constexpr(3)  # tiles on their way at a time
# Multiply-adds in one instruction: stated, as the default differs between versions of triton.
FUSE = {"enable_fp_fusion": True}
# Left alone, the compiler spills a few registers for an occupancy that the gather does not need.
OPTIONS = {**FUSE, "num_warps": 1, "maxnreg": 128}


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
    D, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Stores q = RMSNorm(hidden[step_index]) . weight + bias of the steps start..end and, with a norm, q - bias and
    1 / rms, which the backward needs."""
    bias = tl.load(bias_ptr).to(tl.float32) if HAS_BIAS else 0.0
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
            if HAS_NORM:
                weight *= tl.load(norm_weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
                square += tl.sum(tl.reshape(x * x, [BLOCK_S, BLOCK_D // EIGHT, EIGHT]), 2)
            dot += tl.sum(tl.reshape(x * weight[None, :], [BLOCK_S, BLOCK_D // EIGHT, EIGHT]), 2)
        q = tl.sum(dot, 1)
        if HAS_NORM:
            rstd = tl.rsqrt(tl.sum(square, 1) / D + norm_eps)
            q *= rstd
            tl.store(rstd_ptr + step, rstd, mask=step < end)
            tl.store(dot_ptr + step, q, mask=step < end)
        tl.store(q_ptr + step, q + bias, mask=step < end)


@triton.jit(do_not_specialize=["num_trajectories", "num_windows"])  # each batch has others
def forward_kernel(
    hidden_ptr, stride_row, stride_column, step_index_ptr, labels_ptr, cu_steps_ptr,
    weight_ptr, bias_ptr, norm_weight_ptr, normalizer_ptr, q_ptr, dot_ptr, rstd_ptr, x_ptr, dq_ptr, losses_ptr,
    parts_done_ptr, num_trajectories, num_windows, zeta, norm_eps, scale,
    D, LOSS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, HAS_NORMALIZER: tl.constexpr,
    PART: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SWEEP: tl.constexpr,
):  # fmt: skip
    """Programs 0..num_windows are windows, those of long trajectories first; the others are trajectories."""
    program = tl.program_id(0).to(tl.int64)
    is_window = program < num_windows
    # The first PART steps are no window: none of them can be further down in its trajectory.
    window = (program + 1) * PART
    trajectory = _count_up_to(cu_steps_ptr + 1, num_trajectories, window, PART) if is_window else program - num_windows
    start = tl.load(cu_steps_ptr + trajectory).to(tl.int64)
    end = tl.load(cu_steps_ptr + trajectory + 1).to(tl.int64)
    own_first = start
    own_end = tl.minimum(end, start + PART)
    if is_window:
        own_first = tl.maximum(start + PART, window)
        own_end = tl.minimum(end, window + PART)
    _score_steps(
        hidden_ptr, stride_row, stride_column, step_index_ptr, weight_ptr, bias_ptr, norm_weight_ptr,
        q_ptr, dot_ptr, rstd_ptr, own_first, own_end, norm_eps, D, HAS_BIAS, HAS_NORM, BLOCK_S, BLOCK_D,
    )  # fmt: skip
    if HAS_NORMALIZER:
        scale /= tl.load(normalizer_ptr)
    tl.debug_barrier()  # other threads read q than wrote it
    is_last = (end - start <= PART) & (program >= num_windows)
    if parts_done_ptr is not None:  # noqa: SIM102 (known when compiled; else no trajectory can be long)
        if (end - start > PART) & (own_first < own_end):
            # The barrier and the atomic together publish this program's scores and receive those of the others.
            done_before = tl.atomic_add(parts_done_ptr + trajectory, 1, sem="acq_rel", scope="gpu")
            is_last = done_before == (end - 1) // PART - (start + PART) // PART + 1
    if is_last:
        loss = trajectory_loss(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, zeta, scale, LOSS, BLOCK_SWEEP)
        tl.store(losses_ptr + trajectory, loss)


def columns_per_tile(hidden: Tensor, tile_width: int) -> int:
    """A tile of `tile_width` bytes, or of the next power of two of columns if fewer are there."""
    if hidden.stride(1) != 1 or hidden.stride(0) % 16 or hidden.shape[1] % 16:
        tile_width //= 4  # element by element, a tile takes many more registers
    return min(tile_width // hidden.element_size(), max(16, triton.next_power_of_2(hidden.shape[1])))


def forward(
    hidden: Tensor, step_index: Tensor, labels: Tensor, cu_steps: Tensor, weight: Tensor, bias: Tensor | None,
    norm_weight: Tensor | None, normalizer: Tensor | None, loss: str, zeta: float, norm_eps: float, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Launches the kernel. The sum of the trajectory losses times `scale`, over `normalizer` if there is one, its
    gradient by the scores [S], the scores q [S] and, for the backward with a norm, q - bias and 1 / rms [S]."""
    num_steps, num_trajectories = len(step_index), len(cu_steps) - 1

    def per_step(needed: bool = True) -> Tensor:
        return torch.empty(num_steps if needed else 0, dtype=torch.float32, device=hidden.device)

    has_norm = norm_weight is not None
    q, dq, dot, rstd = per_step(), per_step(), per_step(has_norm), per_step(has_norm)
    losses = torch.empty(num_trajectories, dtype=torch.float32, device=hidden.device)
    num_windows = max(triton.cdiv(num_steps, PART) - 1, 0)
    if num_trajectories:
        with torch.cuda.device_of(hidden):  # triton launches on the current device
            forward_kernel[(num_windows + num_trajectories,)](
                hidden, *hidden.stride(), step_index, labels.float(), cu_steps,
                weight, bias, norm_weight, None if normalizer is None else normalizer.float(),
                q, dot, rstd, per_step() if loss in CHAINED else None, dq, losses,
                torch.zeros(num_trajectories, dtype=torch.int32, device=hidden.device) if num_windows else None,
                num_trajectories, num_windows, zeta, norm_eps, scale,
                hidden.shape[1], LOSS=loss, HAS_BIAS=bias is not None, HAS_NORM=has_norm,
                HAS_NORMALIZER=normalizer is not None, PART=PART, BLOCK_S=STEPS_PER_TILE,
                BLOCK_D=columns_per_tile(hidden, TILE_WIDTH), BLOCK_SWEEP=STEPS_PER_SWEEP, **OPTIONS,
            )  # fmt: skip
    return losses.sum(), dq, q, dot, rstd
