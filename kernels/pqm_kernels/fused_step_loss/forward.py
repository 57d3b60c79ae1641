"""The forward kernel: scores, losses, their sum and their gradient by the scores, in one launch.

Each program scores up to PART = STEPS_PER_PROGRAM steps. It reads the row of `hidden` of each step once, with the
RMSNorm fused. Programs of two kinds share the steps. There is one program for each trajectory, which takes its first
PART steps. There is also one for each window of PART consecutive steps of the batch, which takes the steps in it that
come after the first PART of their trajectory. So a long trajectory is scored by many programs and delays no other. All
such steps of a window belong to one trajectory, the one that the window's first step belongs to. The program that is
the last of its trajectory to finish computes the loss from the scores, and the last program of all adds up the losses.
Between them, where the solutions of a question are compared, the program that computes the last of their trajectory
losses adds the loss of the question. All read their inputs in order, so that results do not depend on which program was
last.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pqm_kernels.fused_step_loss.counters import zeroed
from pqm_kernels.fused_step_loss.device_losses import trajectory_loss
from pqm_kernels.fused_step_loss.device_questions import question_loss
from pqm_kernels.fused_step_loss.device_solutions import solution_outcome, solution_score
from pqm_kernels.fused_step_loss.work_buffer import work_size
from pqm_kernels.launch import FUSED_MULTIPLY_ADD, aligned_key, dtype_key, with_options
from pqm_kernels.losses import LOSSES, split_units
from pqm_kernels.tiles import columns_per_tile

STEPS_PER_PROGRAM = 64
STEPS_PER_TILE = 8  # rows of hidden gathered at a time; about the steps of an average trajectory
LOSSES_PER_SWEEP = 1024  # losses that are added up at a time


class Program(NamedTuple):
    """The size of a program and of its tiles."""

    options: dict[str, int]
    """Options of the compiler. Without `maxnreg` it spills some registers to reach an occupancy that the gather
    does not need."""
    tile_width: int
    """Bytes of a row that are loaded at a time."""
    steps_per_sweep: int
    """Steps of a loss that are computed at a time. With two warps they are so few that each warp computes all of them,
    and neither waits for the other."""


# With fewer programs than this, two for each multiprocessor of an H100, little else runs while a program waits for
# memory, so each loads twice as much at a time. The choice depends on sizes only, not on the GPU, so that sums have the
# same order on every GPU.
FEW_PROGRAMS = 264
FOR_FEW_PROGRAMS = Program({"num_warps": 2, "maxnreg": 255}, tile_width=1024, steps_per_sweep=32)
FOR_MANY_PROGRAMS = Program({"num_warps": 1, "maxnreg": 128}, tile_width=512, steps_per_sweep=64)
COLUMNS_PER_THREAD = tl.constexpr(8)  # neighbouring columns, which one thread loads
STAGES = tl.constexpr(3)  # tiles that are loaded at a time


@triton.jit
def _count_up_to(values_ptr, num_values, bound, BLOCK: tl.constexpr):
    """The number of values <= bound. The values rise; each turn divides the range to search by BLOCK."""
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
def _thread_sums(x, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr):
    """[BLOCK_S, BLOCK_D / COLUMNS_PER_THREAD]: sums of columns. A sum for each column would fill the registers."""
    return tl.sum(tl.reshape(x, [BLOCK_S, BLOCK_D // COLUMNS_PER_THREAD, COLUMNS_PER_THREAD]), 2)


@triton.jit
def _score_steps(
    hidden_ptr, stride_row, stride_column, step_index_ptr, weight_ptr, bias_ptr, norm_weight_ptr,
    q_ptr, dot_ptr, rstd_ptr, start, end, norm_eps,
    D, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Stores q = RMSNorm(hidden[step_index]) . weight + bias for the steps start..end and, with a norm, q - bias and
    1 / rms for the backward."""
    bias = tl.load(bias_ptr).to(tl.float32) if bias_ptr is not None else 0.0
    for first in range(start, end, BLOCK_S):
        step = first + tl.arange(0, BLOCK_S)
        row = tl.load(step_index_ptr + step, mask=step < end, other=0).to(tl.int64)
        dot = tl.zeros([BLOCK_S, BLOCK_D // COLUMNS_PER_THREAD], tl.float32)
        square = tl.zeros([BLOCK_S, BLOCK_D // COLUMNS_PER_THREAD], tl.float32)
        for left in tl.range(0, D, BLOCK_D, num_stages=STAGES):
            column = left + tl.arange(0, BLOCK_D)
            weight = tl.load(weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
            pointers = hidden_ptr + row[:, None] * stride_row + column[None, :].to(tl.int64) * stride_column
            read = (step < end)[:, None] & (column < D)[None, :]
            x = tl.load(pointers, mask=read, other=0.0).to(tl.float32)
            if norm_weight_ptr is not None:
                weight *= tl.load(norm_weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
                square += _thread_sums(x * x, BLOCK_S, BLOCK_D)
            dot += _thread_sums(x * weight[None, :], BLOCK_S, BLOCK_D)
        q = tl.sum(dot, 1)
        if norm_weight_ptr is not None:
            rstd = tl.rsqrt(tl.sum(square, 1) / D + norm_eps)
            q *= rstd
            tl.store(rstd_ptr + step, rstd, mask=step < end)
            tl.store(dot_ptr + step, q, mask=step < end)
        tl.store(q_ptr + step, q + bias, mask=step < end)


@with_options(**FUSED_MULTIPLY_ADD)
@triton.jit(
    do_not_specialize=["num_steps", "num_trajectories", "num_questions"],  # they differ from batch to batch
    do_not_specialize_on_alignment=[
        "step_index_ptr", "labels_ptr", "cu_steps_ptr", "bias_ptr", "normalizer_ptr", "cu_groups_ptr",
        "sibling_order_ptr", "sibling_first_ptr", "sibling_end_ptr", "outcomes_ptr", "step_weights_ptr", "weights_ptr",
        "loss_ptr", "q_ptr", "work_ptr", "counters_ptr",
    ],
)  # fmt: skip
def forward_kernel(
    hidden_ptr, weight_ptr, bias_ptr, norm_weight_ptr, step_index_ptr, labels_ptr, cu_steps_ptr, normalizer_ptr,
    cu_groups_ptr, sibling_order_ptr, sibling_first_ptr, sibling_end_ptr, outcomes_ptr, step_weights_ptr, weights_ptr,
    loss_ptr, q_ptr, work_ptr, counters_ptr, stride_row, stride_column, D, num_steps, num_trajectories, num_questions,
    zeta, temperature, before, after, compare_weight, norm_eps, scale,
    LOSS: tl.constexpr, COMPARE: tl.constexpr, OUTCOMES: tl.constexpr, PART: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SWEEP: tl.constexpr, BLOCK_LOSSES: tl.constexpr,
):  # fmt: skip
    """The first programs are those of windows, because long trajectories take longest; those of trajectories follow.

    The first counter counts the programs that are done. Then each counts the programs of one long trajectory, and each
    of the last ones the trajectories of a question.
    """
    dq_ptr = work_ptr
    dot_ptr = dq_ptr + num_steps
    rstd_ptr = dot_ptr + num_steps
    losses_ptr = dot_ptr if norm_weight_ptr is None else rstd_ptr + num_steps
    scores_ptr = losses_ptr + num_trajectories  # the next three exist only if OUTCOMES
    rests_ptr = scores_ptr + num_trajectories
    solved_outcomes_ptr = rests_ptr + num_trajectories
    x_ptr = losses_ptr + num_trajectories * (4 if OUTCOMES else 1)
    num_windows = tl.maximum(tl.cdiv(num_steps, PART) - 1, 0)
    program = tl.program_id(0).to(tl.int64)
    is_window = program < num_windows
    # The first PART steps of the batch are not a window: each of them is among the first PART of its trajectory.
    window = (program + 1) * PART
    trajectory = _count_up_to(cu_steps_ptr + 1, num_trajectories, window, PART) if is_window else program - num_windows
    exists = trajectory < num_trajectories  # without trajectories there is still one program, which computes the sum
    start = tl.load(cu_steps_ptr + trajectory, mask=exists, other=0).to(tl.int64)
    end = tl.load(cu_steps_ptr + trajectory + 1, mask=exists, other=0).to(tl.int64)
    scored_from = start
    scored_to = tl.minimum(end, start + PART)
    if is_window:
        scored_from = tl.maximum(start + PART, window)
        scored_to = tl.minimum(end, window + PART)
    _score_steps(
        hidden_ptr, stride_row, stride_column, step_index_ptr, weight_ptr, bias_ptr, norm_weight_ptr,
        q_ptr, dot_ptr, rstd_ptr, scored_from, scored_to, norm_eps, D, BLOCK_S, BLOCK_D,
    )  # fmt: skip
    if normalizer_ptr is not None:
        scale /= tl.load(normalizer_ptr).to(tl.float32)
    tl.debug_barrier()  # threads read scores that other threads wrote
    is_last = (end - start <= PART) & (program >= num_windows)
    if (end - start > PART) & (scored_from < scored_to):
        # The barrier and the atomic together publish this program's scores and receive those of the others.
        parts_ptr = counters_ptr + 1 + start // PART
        done_before = tl.atomic_add(parts_ptr, 1, sem="acq_rel", scope="gpu")
        is_last = done_before == (end - 1) // PART - (start + PART) // PART + 1
        if is_last:
            tl.store(parts_ptr, 0)
    if is_last:
        weighted = scale
        if weights_ptr is not None:
            weighted *= tl.load(weights_ptr + trajectory, mask=exists, other=0.0).to(tl.float32)
        loss = trajectory_loss(
            q_ptr, labels_ptr, step_weights_ptr, x_ptr, dq_ptr, start, end, zeta, before, after, weighted,
            LOSS, BLOCK_SWEEP,
        )  # fmt: skip
        tl.store(losses_ptr + trajectory, loss, mask=exists)
    if COMPARE is not None:  # noqa: SIM102  # decided when the kernel is compiled
        if is_last & exists:
            if OUTCOMES:
                score, rest = solution_score(q_ptr, start, end, temperature, COMPARE, BLOCK_SWEEP)
                outcome = solution_outcome(outcomes_ptr, labels_ptr, trajectory, start, end, BLOCK_SWEEP)
                tl.store(scores_ptr + trajectory, score)
                tl.store(rests_ptr + trajectory, rest)
                tl.store(solved_outcomes_ptr + trajectory, outcome)
            question = _count_up_to(cu_groups_ptr + 1, num_questions, trajectory, PART)
            first = tl.load(cu_groups_ptr + question).to(tl.int64)
            last = tl.load(cu_groups_ptr + question + 1).to(tl.int64)
            tl.debug_barrier()  # the same for all that the question's loss reads
            solved_ptr = counters_ptr + 1 + tl.cdiv(num_steps, PART) + question
            if tl.atomic_add(solved_ptr, 1, sem="acq_rel", scope="gpu") == last - first - 1:
                tl.store(solved_ptr, 0)
                compared = question_loss(
                    q_ptr, labels_ptr, x_ptr, dq_ptr, cu_steps_ptr, scores_ptr, rests_ptr, solved_outcomes_ptr,
                    sibling_order_ptr, sibling_first_ptr, sibling_end_ptr, step_weights_ptr, weights_ptr, first, last,
                    tl.load(cu_steps_ptr + first).to(tl.int64), tl.load(cu_steps_ptr + last).to(tl.int64),
                    zeta, temperature, compare_weight * scale, COMPARE, BLOCK_SWEEP,
                )  # fmt: skip
                tl.store(losses_ptr + first, tl.load(losses_ptr + first) + compared)
    tl.debug_barrier()  # the same for the losses
    if tl.atomic_add(counters_ptr, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1:
        total = tl.zeros([BLOCK_LOSSES], tl.float32)
        for first in range(0, num_trajectories, BLOCK_LOSSES):
            position = first + tl.arange(0, BLOCK_LOSSES)
            total += tl.load(losses_ptr + position, mask=position < num_trajectories, other=0.0)
        tl.store(loss_ptr, tl.sum(total, 0))
        tl.store(counters_ptr, 0)


def forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, step_index: Tensor,
    labels: Tensor, cu_steps: Tensor, normalizer: Tensor | None, questions: list[Tensor | None],
    loss: str, compare: str | None, numbers: list[float], scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Launches the kernel. Returns the sum of the losses times `scale` (and divided by `normalizer` if there is one),
    the scores [S], and `work` (see `work_size`).

    `questions` and `numbers` are the arguments of the operator from `cu_groups` to `trajectory_weights`, and `numbers`.
    """
    width = hidden.shape[1]
    num_steps, num_trajectories = step_index.shape[0], cu_steps.shape[0] - 1
    of_trajectory, of_question = split_units(loss, compare)
    *numbers, compare_weight, norm_eps = numbers
    cu_groups = questions[0]
    num_questions = 0 if cu_groups is None else cu_groups.shape[0] - 1
    stride_row, stride_column = hidden.stride()
    num_parts = -(-num_steps // STEPS_PER_PROGRAM)
    programs = max(num_parts - 1, 0) + max(num_trajectories, 1)
    chosen = FOR_FEW_PROGRAMS if programs < FEW_PROGRAMS else FOR_MANY_PROGRAMS
    block_d = columns_per_tile(chosen.tile_width, hidden.dtype.itemsize, width, stride_row, stride_column)
    constants = (
        of_trajectory, of_question, of_question is not None and LOSSES[of_question].uses_outcomes, STEPS_PER_PROGRAM,
        STEPS_PER_TILE, block_d, chosen.steps_per_sweep, LOSSES_PER_SWEEP,
    )  # fmt: skip
    key = (
        *chosen.options.values(), *constants, stride_row, stride_column, width, aligned_key(hidden),
        aligned_key(weight), dtype_key(bias), aligned_key(norm_weight), step_index.dtype, labels.dtype, cu_steps.dtype,
        dtype_key(normalizer), *map(dtype_key, questions),
    )  # fmt: skip
    size = work_size(num_steps, num_trajectories, norm_weight is not None, loss, compare)
    work = hidden.new_empty(size, dtype=torch.float32)
    q, total = work.new_empty(num_steps), work.new_empty(())
    arguments = (
        hidden, weight, bias, norm_weight, step_index, labels, cu_steps, normalizer, *questions, total, q, work,
        zeroed(1 + num_parts + num_questions, hidden), stride_row, stride_column, width, num_steps, num_trajectories,
        num_questions, *numbers, compare_weight if of_trajectory is not None else 1.0, norm_eps, scale, *constants,
    )  # fmt: skip
    forward_kernel.launch(hidden, key, (programs, 1, 1), arguments, **chosen.options)
    return total, q, work
