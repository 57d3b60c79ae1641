"""Triton device code of `step_loss` for the loss `rank`, and the two functions that launch it.

Forward, one program per trajectory: the score of each step from its row of `hidden` (read once, with the RMSNorm fused), then
the loss and its gradient over the scores in sweeps of linear time. Backward, one program per group of rows and slice of
columns: each row of the gradient is written once, the head's gradient goes to one fp32 partial sum per program. All sums run
in a fixed order, so that results repeat bit for bit; all arithmetic is float32.

`rank` as a chain of logistic terms. With S_0 = log(1 + N) and S_i = log(e^S_0 + sum_{k <= i} e^q_ck), let x_i = q_ci - S_{i-1}:
    term_i = S_i - q_ci = softplus(-x_i)
    dL/dq_ci = (u_i - sigmoid(-x_i) (1 + u_i)) / Z      with u_{i-1} = sigmoid(-x_i) (1 + u_i), u_|C| = 0
    dL/dq_w  = e^(q_w + zeta - S_0) (1 + u_0) / Z
Only x_i has to be kept between the forward and the backward sweep, and nothing cancels.
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
def _score_steps(
    hidden_ptr, stride_row, stride_column, step_index_ptr, weight_ptr, bias_ptr, norm_weight_ptr,
    q_ptr, rstd_ptr, start, end, norm_eps,
    D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
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
            x = tl.load(pointers, mask=(step < end)[:, None] & (column < D)[None, :], other=0.0).to(tl.float32)
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
    """The loss `rank` of the steps start..end, which it returns, and its gradient, which it stores; x_ptr is scratch."""
    # S_0 as (m, s), from the wrong steps and Q_0 = 0, and the number of terms Z.
    m = 0.0
    s = 1.0
    num_correct = 0
    any_wrong = 0
    check = 0.0
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        q = tl.load(q_ptr + step, mask=step < end, other=0.0)
        correct = tl.load(labels_ptr + step, mask=step < end, other=1.0) > 0.5
        new_m = tl.maximum(m, tl.max(tl.where(correct, NOTHING, q + zeta), 0))
        s = s * tl.exp(m - new_m) + tl.sum(tl.where(correct, 0.0, tl.exp(q + zeta - new_m)), 0)
        m = new_m
        num_correct += tl.sum((correct & (step < end)).to(tl.int32), 0)
        any_wrong = tl.maximum(any_wrong, tl.max((~correct).to(tl.int32), 0))
        check += tl.sum(q * 0.0, 0)  # NaN if a score is not finite: not every sum would show it
    terms = tl.maximum(num_correct + any_wrong, 1).to(tl.float32)
    zero_m = m
    zero_log = tl.log(s)
    loss = zero_m + zero_log + check

    # Forward sweep: S_{i-1} before each step is a scan over the steps shifted by one.
    for first in range(start, end, BLOCK):
        offset = tl.arange(0, BLOCK)
        step = first + offset
        inside = step < end
        before = (offset > 0) & inside
        previous = tl.load(q_ptr + step - 1, mask=before, other=0.0)
        counted = before & (tl.load(labels_ptr + step - 1, mask=before, other=0.0) > 0.5)
        # The sums of earlier chunks enter as the first element.
        element_m = tl.where(offset == 0, m, tl.where(counted, previous, NOTHING))
        element_s = tl.where(offset == 0, s, tl.where(counted, 1.0, 0.0))
        scan_m, scan_s = tl.associative_scan((element_m, element_s), 0, _join)
        q = tl.load(q_ptr + step, mask=inside, other=0.0)
        correct = inside & (tl.load(labels_ptr + step, mask=inside, other=0.0) > 0.5)
        x = (q - scan_m) - tl.log(scan_s)
        loss += tl.sum(tl.where(correct, tl.maximum(-x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x))), 0.0), 0)
        tl.store(x_ptr + step, x, mask=inside)
        # Carry: the sums up to and with the last step of the chunk.
        at_end = offset == BLOCK - 1
        last_m = tl.sum(tl.where(at_end, scan_m, 0.0), 0)
        last_s = tl.sum(tl.where(at_end, scan_s, 0.0), 0)
        m, s = _join(
            last_m, last_s,
            tl.max(tl.where(at_end & correct, q, NOTHING), 0), tl.sum(tl.where(at_end & correct, 1.0, 0.0), 0),
        )  # fmt: skip
