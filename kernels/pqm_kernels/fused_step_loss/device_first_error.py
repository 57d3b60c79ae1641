"""Triton code of the losses in which the place of the first error is latent; as in device_losses.py."""

import triton
import triton.language as tl

from pqm_kernels.fused_step_loss.device_labels import load_labels
from pqm_kernels.fused_step_loss.device_math import EMPTY_MAX, add_exact, add_pairs, include, sigmoid, softplus

LEAST_PROBABILITY = tl.constexpr(1e-12)


@triton.jit
def _log_emission(y, rate_of_one):
    """log of the probability of the label y, a mixture if it is soft, where a label is 1 at this rate."""
    return tl.log(tl.maximum(y * rate_of_one + (1.0 - y) * (1.0 - rate_of_one), LEAST_PROBABILITY))


@triton.jit
def _log_no_error(q_ptr, labels_ptr, step, mask, before):
    """log of the probability that a step is right, times that of its label then; 0 outside the mask."""
    q = tl.load(q_ptr + step, mask=mask, other=0.0)
    y = load_labels(labels_ptr, step, mask)
    wrong_rate = tl.maximum(y * (1.0 - before) + (1.0 - y) * before, LEAST_PROBABILITY)
    return tl.where(mask, tl.log(wrong_rate) - softplus(-q), 0.0)


@triton.jit
def first_error_noisy(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, before, after, scale, BLOCK: tl.constexpr):
    """With w_z the log of the probability of the labels and of a first error at z, or at no step,
        loss = -log sum_z e^w_z,  dloss/dq_t = P(z = t) sigmoid(q_t) - P(z > t) sigmoid(-q_t),  P(z) = e^(w_z + loss).
    A sweep down sums the logarithms of the labels from each step on; a sweep up adds those before it, which makes w; a
    second sweep down sums the probabilities. Only numbers of one sign are summed. The logarithms add up to hundreds,
    while only their differences matter: they are pairs of floats, in x and, until it has the gradient, in dq."""
    offset = tl.arange(0, BLOCK)
    carried = 0.0
    carried_low = 0.0
    for first in range(start, end, BLOCK):
        step = end - 1 - (first - start) - offset
        y = load_labels(labels_ptr, step, step >= start)
        emission = tl.where(step >= start, _log_emission(y, after), 0.0)
        emission_low = tl.where(offset == 0, carried_low, 0.0)
        first_sum, first_error = add_exact(emission, carried)
        emission_low += tl.where(offset == 0, first_error, 0.0)
        emission = tl.where(offset == 0, first_sum, emission)
        from_here, from_here_low = tl.associative_scan((emission, emission_low), 0, add_pairs)
        tl.store(x_ptr + step, from_here, mask=step >= start)
        tl.store(dq_ptr + step, from_here_low, mask=step >= start)
        carried = tl.sum(tl.where(offset == BLOCK - 1, from_here, 0.0), 0)
        carried_low = tl.sum(tl.where(offset == BLOCK - 1, from_here_low, 0.0), 0)
    tl.debug_barrier()  # threads read sums that other threads wrote
    m = EMPTY_MAX + 0.0
    s = 0.0
    carried = 0.0
    carried_low = 0.0
    for first in range(start, end, BLOCK):
        step = first + offset
        earlier = _log_no_error(q_ptr, labels_ptr, step - 1, (offset > 0) & (step - 1 < end), before)
        until_here, until_here_low = tl.associative_scan(
            (tl.where(offset == 0, carried, earlier), tl.where(offset == 0, carried_low, 0.0)), 0, add_pairs
        )
        q = tl.load(q_ptr + step, mask=step < end, other=0.0)
        from_here = tl.load(x_ptr + step, mask=step < end, other=0.0)
        from_here_low = tl.load(dq_ptr + step, mask=step < end, other=0.0)
        w, w_low = add_pairs(until_here, until_here_low, from_here, from_here_low)
        w, w_low = add_pairs(w, w_low, -softplus(q), 0.0)
        m, s = include(m, s, w, w_low, step < end)
        tl.store(x_ptr + step, w, mask=step < end)
        tl.store(dq_ptr + step, w_low, mask=step < end)
        here = _log_no_error(q_ptr, labels_ptr, step, step < end, before)
        sums, sums_low = add_pairs(until_here, until_here_low, here, 0.0)
        carried = tl.sum(tl.where(offset == BLOCK - 1, sums, 0.0), 0)
        carried_low = tl.sum(tl.where(offset == BLOCK - 1, sums_low, 0.0), 0)
    # The path without an error.
    new_m = tl.maximum(m, carried)
    log_s = tl.log(s * tl.exp(m - new_m) + tl.exp((carried - new_m) + carried_low))
    tl.debug_barrier()  # the same for w
    later = tl.exp(((carried - new_m) + carried_low) - log_s)
    for first in range(start, end, BLOCK):
        step = end - 1 - (first - start) - offset
        follows = (offset > 0) & (step + 1 >= start)
        after_it = tl.load(x_ptr + step + 1, mask=follows, other=EMPTY_MAX)
        after_it_low = tl.load(dq_ptr + step + 1, mask=follows, other=0.0)
        p_later = tl.cumsum(tl.where(offset == 0, later, tl.exp(((after_it - new_m) + after_it_low) - log_s)), 0)
        q = tl.load(q_ptr + step, mask=step >= start, other=0.0)
        w = tl.load(x_ptr + step, mask=step >= start, other=EMPTY_MAX)
        w_low = tl.load(dq_ptr + step, mask=step >= start, other=0.0)
        p_here = tl.exp(((w - new_m) + w_low) - log_s)
        tl.debug_barrier()  # no thread reads w in dq any more
        gradient = p_here * sigmoid(q) - p_later * sigmoid(-q)
        tl.store(dq_ptr + step, gradient * scale, mask=step >= start)
        later = tl.sum(tl.where(offset == BLOCK - 1, p_later + p_here, 0.0), 0)
    return -(new_m + log_s) * scale
