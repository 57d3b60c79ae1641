"""Triton device code of `step_loss` for the loss `rank`, and the two functions that launch it.

Forward, one program per trajectory: the score of each step from its row of `hidden`, read once, with the
RMSNorm fused; then the loss and its gradient by the scores, in sweeps of linear time. Backward, one program
per group of rows and slice of columns: each row of the gradient is written once, and the sum that the head's
gradient needs goes to one partial result per program. Every sum has a fixed order, so that results repeat bit
for bit. All arithmetic is float32.

`rank` is a chain of logistic terms: with S_0 = log(1 + N), S_i = log(e^S_0 + sum_{k<=i} e^q_ck) over the
correct steps c_1, c_2, ... and x_i = q_ci - S_{i-1},
    term_i   = S_i - q_ci = softplus(-x_i)
    dL/dq_ci = (u_i - sigmoid(-x_i) (1 + u_i)) / Z, where u_{i-1} = sigmoid(-x_i) (1 + u_i), and u_last = 0
    dL/dq_w  = e^(q_w + zeta - S_0) (1 + u_0) / Z
so that x alone is kept between a sweep up and a sweep down, and nothing cancels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS_PER_TILE = 16  # step rows gathered together
COLUMNS_PER_TILE = 256
STEPS_PER_SWEEP = 128
# Programs that share the rows in the backward: a constant, so that sums have the same order on every GPU.
ROW_GROUPS = 256
# Multiply-adds in one instruction: stated, as the default differs between versions of triton.
FUSE = {"enable_fp_fusion": True}

NOTHING = tl.constexpr(-1e38)  # the maximum of no scores; finite, so that NOTHING - NOTHING is 0


@triton.jit
def _join(max_a, sum_a, max_b, sum_b):
    """Sums of exponentials as (m, s), which stands for s * e^m: the pair of a union of two sets."""
    m = tl.maximum(max_a, max_b)
    return m, sum_a * tl.exp(max_a - m) + sum_b * tl.exp(max_b - m)


@triton.jit
def _then(gain_a, offset_a, gain_b, offset_b):
    """Linear maps u -> gain * u + offset: first a, then b."""
    return gain_a * gain_b, offset_a * gain_b + offset_b


@triton.jit
def _sigmoid_of_minus(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x > 0, e, 1.0) / (1.0 + e)


@triton.jit
def _is_correct(labels_ptr, step, mask):
    return mask & (tl.load(labels_ptr + step, mask=mask, other=0.0) > 0.5)


@triton.jit
def _score_steps(
    hidden_ptr, stride_row, stride_column, step_index_ptr, weight_ptr, bias_ptr, norm_weight_ptr,
    q_ptr, rstd_ptr, start, end, norm_eps,
    D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Stores q = RMSNorm(hidden[step_index]) . weight + bias, and 1 / rms, of the steps start..end."""
    bias = tl.load(bias_ptr).to(tl.float32) if HAS_BIAS else 0.0
    for first in range(start, end, BLOCK_S):
        step = first + tl.arange(0, BLOCK_S)
        row = tl.load(step_index_ptr + step, mask=step < end, other=0).to(tl.int64)
        dot = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
        square = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
        for left in range(0, D, BLOCK_D):
            column = left + tl.arange(0, BLOCK_D)
            weight = tl.load(weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
            pointers = hidden_ptr + row[:, None] * stride_row + column[None, :].to(tl.int64) * stride_column
            read = (step < end)[:, None] & (column < D)[None, :]
            x = tl.load(pointers, mask=read, other=0.0).to(tl.float32)
            if HAS_NORM:
                weight *= tl.load(norm_weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
                square += x * x
            dot += x * weight[None, :]
        q = tl.sum(dot, 1)
        if HAS_NORM:
            rstd = tl.rsqrt(tl.sum(square, 1) / D + norm_eps)
            tl.store(rstd_ptr + step, rstd, mask=step < end)
            q *= rstd
        tl.store(q_ptr + step, q + bias, mask=step < end)


@triton.jit
def _rank(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, zeta, BLOCK: tl.constexpr):
    """Returns the loss `rank` of the steps start..end and stores its gradient by q; x_ptr is scratch."""
    # S_0 as (m, s), from the wrong steps and Q_0 = 0, and the number of terms Z.
    m = 0.0
    s = 1.0
    num_correct = 0
    any_wrong = 0
    check = 0.0
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        inside = step < end
        q = tl.load(q_ptr + step, mask=inside, other=0.0)
        correct = _is_correct(labels_ptr, step, inside)
        wrong = inside & ~correct
        negative = tl.where(wrong, q + zeta, NOTHING)
        new_m = tl.maximum(m, tl.max(negative, 0))
        s = s * tl.exp(m - new_m) + tl.sum(tl.exp(negative - new_m), 0)
        m = new_m
        num_correct += tl.sum(correct.to(tl.int32), 0)
        any_wrong = tl.maximum(any_wrong, tl.max(wrong.to(tl.int32), 0))
        check += tl.sum(q * 0.0, 0)  # NaN if a score is not finite: not every sum would show it
    terms = tl.maximum(num_correct + any_wrong, 1).to(tl.float32)
    zero_m = m
    zero_log = tl.log(s)
    loss = zero_m + zero_log + check

    # Sweep up: S_{i-1} before each step is a scan over the steps shifted by one.
    for first in range(start, end, BLOCK):
        offset = tl.arange(0, BLOCK)
        step = first + offset
        inside = step < end
        before = (offset > 0) & inside
        previous = tl.load(q_ptr + step - 1, mask=before, other=0.0)
        counted = _is_correct(labels_ptr, step - 1, before)
        # The sums of earlier chunks enter as the first element.
        element_m = tl.where(offset == 0, m, tl.where(counted, previous, NOTHING))
        element_s = tl.where(offset == 0, s, tl.where(counted, 1.0, 0.0))
        scan_m, scan_s = tl.associative_scan((element_m, element_s), 0, _join)
        q = tl.load(q_ptr + step, mask=inside, other=0.0)
        correct = _is_correct(labels_ptr, step, inside)
        x = (q - scan_m) - tl.log(scan_s)
        loss += tl.sum(tl.where(correct, tl.maximum(-x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x))), 0.0), 0)
        tl.store(x_ptr + step, x, mask=inside)
        # Carry on with the sums up to and with the last step of the chunk.
        at_end = offset == BLOCK - 1
        last_m = tl.sum(tl.where(at_end, scan_m, 0.0), 0)
        last_s = tl.sum(tl.where(at_end, scan_s, 0.0), 0)
        own_m = tl.max(tl.where(at_end & correct, q, NOTHING), 0)
        own_s = tl.sum(tl.where(at_end & correct, 1.0, 0.0), 0)
        m, s = _join(last_m, last_s, own_m, own_s)

    # Sweep down: u after each step is again a scan over the steps shifted by one, now from the last step.
    tl.debug_barrier()  # other threads read x than wrote it
    carry = 0.0
    for done in range(0, end - start, BLOCK):
        offset = tl.arange(0, BLOCK)
        step = end - 1 - done - offset
        after = (offset > 0) & (step + 1 >= start)
        counted = _is_correct(labels_ptr, step + 1, after)
        shrink = _sigmoid_of_minus(tl.load(x_ptr + step + 1, mask=after, other=0.0))
        # The steps of later chunks enter as the first element, a constant map.
        gain = tl.where(offset == 0, 0.0, tl.where(counted, shrink, 1.0))
        added = tl.where(offset == 0, carry, tl.where(counted, shrink, 0.0))
        _, u = tl.associative_scan((gain, added), 0, _then)
        inside = step >= start
        correct = _is_correct(labels_ptr, step, inside)
        passed = _sigmoid_of_minus(tl.load(x_ptr + step, mask=inside, other=0.0)) * (1.0 + u)
        tl.store(dq_ptr + step, (u - passed) / terms, mask=correct)
        carry = tl.sum(tl.where(offset == BLOCK - 1, tl.where(correct, passed, u), 0.0), 0)
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        wrong = (step < end) & ~_is_correct(labels_ptr, step, step < end)
        q = tl.load(q_ptr + step, mask=wrong, other=0.0)
        share = tl.exp(tl.where(wrong, (q + zeta - zero_m) - zero_log, NOTHING))
        tl.store(dq_ptr + step, share * (1.0 + carry) / terms, mask=wrong)
    return loss / terms


@triton.jit
def _forward_kernel(
    hidden_ptr, stride_row, stride_column, step_index_ptr, labels_ptr, cu_steps_ptr,
    weight_ptr, bias_ptr, norm_weight_ptr, q_ptr, rstd_ptr, x_ptr, dq_ptr, losses_ptr, zeta, norm_eps,
    D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SWEEP: tl.constexpr,
):  # fmt: skip
    """Trajectory `program_id(0)`: its scores, its loss and the gradient of the loss by the scores."""
    trajectory = tl.program_id(0).to(tl.int64)
    start = tl.load(cu_steps_ptr + trajectory).to(tl.int64)
    end = tl.load(cu_steps_ptr + trajectory + 1).to(tl.int64)
    _score_steps(
        hidden_ptr, stride_row, stride_column, step_index_ptr, weight_ptr, bias_ptr, norm_weight_ptr,
        q_ptr, rstd_ptr, start, end, norm_eps, D, HAS_BIAS, HAS_NORM, BLOCK_S, BLOCK_D,
    )  # fmt: skip
    tl.debug_barrier()  # other threads read q than wrote it
    loss = _rank(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, zeta, BLOCK_SWEEP)
    tl.store(losses_ptr + trajectory, loss)


@triton.jit
def _backward_kernel(
    hidden_ptr, stride_row, stride_column, order_ptr, first_step_ptr, dq_sorted_ptr, q_ptr, rstd_ptr,
    weight_ptr, bias_ptr, norm_weight_ptr, dhidden_ptr, partial_ptr, num_rows,
    D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr,
    NEEDS_HIDDEN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient of a group of rows in a slice of columns, and the group's sum of dL/dq * row / rms.

    The steps of row r are order[first_step[r] : first_step[r + 1]]. They have one score, so the gradients by
    it are summed before the row is touched.
    """
    group = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    weight = tl.load(weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr).to(tl.float32) if HAS_BIAS else 0.0
    if HAS_NORM:
        weight *= tl.load(norm_weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
    partial = tl.zeros([BLOCK_D], tl.float32)
    for first in range(group * BLOCK_R, num_rows, tl.num_programs(0) * BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        begin = tl.load(first_step_ptr + row, mask=row < num_rows, other=0)
        end = tl.load(first_step_ptr + row + 1, mask=row < num_rows, other=0)
        dq = tl.zeros([BLOCK_R], tl.float32)
        for done in range(0, tl.max(end - begin, 0), BLOCK_R):
            step = begin[:, None] + done + tl.arange(0, BLOCK_R)[None, :]
            dq += tl.sum(tl.load(dq_sorted_ptr + step, mask=step < end[:, None], other=0.0), 1)
        used = begin < end
        read = used[:, None] & (column < D)[None, :]
        pointers = hidden_ptr + row[:, None] * stride_row + column[None, :].to(tl.int64) * stride_column
        x = tl.load(pointers, mask=read, other=0.0).to(tl.float32)
        gradient = dq[:, None] * weight[None, :]
        if HAS_NORM:
            a_step = tl.load(order_ptr + begin, mask=used, other=0)
            rstd = tl.load(rstd_ptr + a_step, mask=used, other=0.0)
            dot = tl.load(q_ptr + a_step, mask=used, other=0.0) - bias
            x *= rstd[:, None]
            gradient = (gradient - x * (dq * dot / D)[:, None]) * rstd[:, None]
        if NEEDS_HIDDEN:
            target = dhidden_ptr + row[:, None] * D + column[None, :]
            kept = (row < num_rows)[:, None] & (column < D)[None, :]
            tl.store(target, gradient.to(dhidden_ptr.dtype.element_ty), mask=kept)
        partial += tl.sum(dq[:, None] * x, 0)
    tl.store(partial_ptr + group * D + column, partial, mask=column < D)


def forward(
    hidden: Tensor, step_index: Tensor, labels: Tensor, cu_steps: Tensor, weight: Tensor, bias: Tensor | None,
    norm_weight: Tensor | None, zeta: float, norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Per-trajectory losses [B], scores q [S], dloss/dq [S] and, with a norm, 1 / rms [S]; all float32."""
    num_steps, num_trajectories = len(step_index), len(cu_steps) - 1

    def per_step() -> Tensor:
        return torch.empty(num_steps, dtype=torch.float32, device=hidden.device)

    q, dq, x = per_step(), per_step(), per_step()
    rstd = per_step() if norm_weight is not None else None
    losses = torch.empty(num_trajectories, dtype=torch.float32, device=hidden.device)
    if num_trajectories:
        with torch.cuda.device_of(hidden):  # triton launches on the current device
            _forward_kernel[(num_trajectories,)](
                hidden, *hidden.stride(), step_index, labels.float(), cu_steps,
                weight, bias, norm_weight, q, rstd, x, dq, losses, zeta, norm_eps,
                D=hidden.shape[1], HAS_BIAS=bias is not None, HAS_NORM=norm_weight is not None,
                BLOCK_S=ROWS_PER_TILE, BLOCK_D=_column_block(hidden), BLOCK_SWEEP=STEPS_PER_SWEEP, **FUSE,
            )  # fmt: skip
    return losses, q, dq, rstd


def backward(
    dq: Tensor, hidden: Tensor, step_index: Tensor, q: Tensor, rstd: Tensor | None,
    weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, needs_hidden: bool,
) -> tuple[Tensor | None, Tensor]:  # fmt: skip
    """From the gradient of the scores `dq` [S]: that of `hidden` [T, D] in its dtype, if needed, and the sum
    over the steps of dq * hidden[step_index] / rms, [D] float32."""
    num_rows, width = hidden.shape
    # The steps of each row, in order: a stable sort, so that their sum repeats bit for bit.
    sorted_index, order = step_index.sort(stable=True)
    rows = torch.arange(num_rows + 1, device=hidden.device, dtype=step_index.dtype)
    first_step = torch.searchsorted(sorted_index, rows)
    groups = min(ROW_GROUPS, triton.cdiv(num_rows, ROWS_PER_TILE))
    block = _column_block(hidden)
    dhidden = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device) if needs_hidden else None
    partial = torch.empty(groups, width, dtype=torch.float32, device=hidden.device)
    if num_rows:
        with torch.cuda.device_of(hidden):
            _backward_kernel[(groups, triton.cdiv(width, block))](
                hidden, *hidden.stride(), order, first_step, dq[order], q, rstd,
                weight, bias, norm_weight, dhidden, partial, num_rows,
                D=width, HAS_BIAS=bias is not None, HAS_NORM=norm_weight is not None,
                NEEDS_HIDDEN=needs_hidden, BLOCK_R=ROWS_PER_TILE, BLOCK_D=block, **FUSE,
            )  # fmt: skip
    return dhidden, partial.sum(0)


def _column_block(hidden: Tensor) -> int:
    return min(COLUMNS_PER_TILE, triton.next_power_of_2(hidden.shape[1]))
