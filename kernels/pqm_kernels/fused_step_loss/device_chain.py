"""Triton code of the ranking chain that the rank losses share, with its gradient.

The rank losses are chains of logistic terms. With S_0 = log(1 + N), S_i = log(e^S_0 + sum_{k<=i} e^q_ck) over the
correct steps c_1, c_2, ... and x_i = q_ci - S_{i-1},
    term_i   = S_i - q_ci = softplus(-x_i)
    dL/dq_ci = u_i - sigmoid(-x_i) (1 + u_i), where u_{i-1} = sigmoid(-x_i) (1 + u_i), and u_last = 0
    dL/dq_w  = e^(q_w + zeta - S_0) (1 + u_0)
so that only x is kept, in `x_ptr`, between a sweep up and a sweep down.
"""

import triton
import triton.language as tl

from pqm_kernels.fused_step_loss.device_labels import has_label
from pqm_kernels.fused_step_loss.device_math import EMPTY_MAX, add_exact, include, join, sigmoid, softplus, then


@triton.jit
def chain(
    q_ptr, labels_ptr, x_ptr, dq_ptr, origin, length, m, s, scale,
    DIRECTION: tl.constexpr, CORRECT: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums the terms softplus(-x_i) of a chain and returns the sum and u_0.

    The members are the correct steps (for CORRECT False the wrong ones) among origin + DIRECTION * (0..length), and
    S_0 is (m, s). scale * gradient of the members is stored or, with ADD, added.
    """
    offset = tl.arange(0, BLOCK)
    total = 0.0
    tl.debug_barrier()  # an earlier chain may still be reading x
    # Sweep up: S_{i-1} before each step is a scan over the steps shifted by one.
    for first in range(0, length, BLOCK):
        step = origin + DIRECTION * (first + offset)
        inside = first + offset < length
        before = inside & (offset > 0)
        previous = tl.load(q_ptr + step - DIRECTION, mask=before, other=0.0)
        counted = has_label(CORRECT, labels_ptr, step - DIRECTION, before)
        # The sums of earlier blocks enter as the first element.
        element_m = tl.where(offset == 0, m, tl.where(counted, previous, EMPTY_MAX))
        element_s = tl.where(offset == 0, s, tl.where(counted, 1.0, 0.0))
        scan_m, scan_s = tl.associative_scan((element_m, element_s), 0, join)
        q = tl.load(q_ptr + step, mask=inside, other=0.0)
        member = has_label(CORRECT, labels_ptr, step, inside)
        x = (q - scan_m) - tl.log(tl.maximum(scan_s, 1.0))
        total += tl.sum(tl.where(member, softplus(-x), 0.0), 0)
        tl.store(x_ptr + step, x, mask=inside)
        # The next block continues with the sums up to and including the last step of this one.
        at_end = offset == BLOCK - 1
        last_m = tl.sum(tl.where(at_end, scan_m, 0.0), 0)
        last_s = tl.sum(tl.where(at_end, scan_s, 0.0), 0)
        member_m = tl.max(tl.where(at_end & member, q, EMPTY_MAX), 0)
        member_s = tl.sum(tl.where(at_end & member, 1.0, 0.0), 0)
        m, s = join(last_m, last_s, member_m, member_s)

    # Sweep down: u after each step is a scan too, over the steps shifted by one, starting from the last step.
    tl.debug_barrier()  # threads read values of x that other threads wrote
    u = 0.0
    for first in range(0, length, BLOCK):
        position = length - 1 - first - offset
        step = origin + DIRECTION * position
        after = (position >= -1) & (offset > 0)  # position -1, before the first step, yields u_0
        counted = has_label(CORRECT, labels_ptr, step + DIRECTION, after)
        shrink = sigmoid(-tl.load(x_ptr + step + DIRECTION, mask=after, other=0.0))
        # The steps of earlier blocks enter as the first element, a constant map.
        gain = tl.where(offset == 0, 0.0, tl.where(counted, shrink, 1.0))
        added = tl.where(offset == 0, u, tl.where(counted, shrink, 0.0))
        _, below = tl.associative_scan((gain, added), 0, then)
        member = has_label(CORRECT, labels_ptr, step, position >= 0)
        passed = sigmoid(-tl.load(x_ptr + step, mask=member, other=0.0)) * (1.0 + below)
        gradient = (below - passed) * scale
        if ADD:
            gradient += tl.load(dq_ptr + step, mask=member, other=0.0)
        tl.store(dq_ptr + step, gradient, mask=member)
        u = tl.sum(tl.where(offset == BLOCK - 1, tl.where(member, passed, below), 0.0), 0)
    return total, u


@triton.jit
def rank_terms(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, stop, zeta, scale, BLOCK: tl.constexpr):
    """Sum of the terms of `rank`, with N over the wrong steps before `stop`; stores scale * gradient of all steps."""
    m = EMPTY_MAX + 0.0
    s = 0.0
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        q = tl.load(q_ptr + step, mask=step < end, other=0.0)
        negative, error = add_exact(q, zeta)
        in_n = has_label(False, labels_ptr, step, step < end) & (step < stop)
        m, s = include(m, s, negative, error, in_n)
    n_m = tl.maximum(m, 0.0)
    n_s = tl.exp(-n_m) + s * tl.exp(m - n_m)  # with Q_0 = 0: 1 + N
    total, u = chain(
        q_ptr, labels_ptr, x_ptr, dq_ptr, start, end - start, n_m, n_s, scale,
        DIRECTION=1, CORRECT=True, ADD=False, BLOCK=BLOCK,
    )  # fmt: skip
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        wrong = has_label(False, labels_ptr, step, step < end)
        q = tl.load(q_ptr + step, mask=wrong, other=0.0)
        negative, error = add_exact(q, zeta)
        share = tl.exp(tl.where(wrong & (step < stop), ((negative - n_m) + error) - tl.log(n_s), EMPTY_MAX))
        tl.store(dq_ptr + step, share * (1.0 + u) * scale, mask=wrong)
    return softplus(m + tl.log(tl.maximum(s, 1.0))) + total
