"""Triton code that relates steps to the solutions of a question: whose they are, their weights, scores and outcomes."""

import triton
import triton.language as tl

from pqm_kernels.fused_step_loss.device_labels import count_correct
from pqm_kernels.fused_step_loss.device_math import EMPTY_MAX, add_exact, add_pairs, softplus

RIGHT = tl.constexpr(1.0)
WRONG = tl.constexpr(0.0)
NOT_KNOWN = tl.constexpr(-1.0)


@triton.jit
def solution_of(cu_steps_ptr, first, last, step):
    """The solution in first..last - 1 that each step belongs to: the last one that begins at it or before."""
    found = tl.zeros_like(step).to(tl.int64) + first
    count = last - first
    while count > 1:  # it is one of found .. found + count - 1
        half = count // 2
        found = tl.where(tl.load(cu_steps_ptr + found + half) <= step, found + half, found)
        count -= half
    return found


@triton.jit
def load_weights(weights_ptr, index, mask):
    """Weights in float32, 1 without weights; 0 outside the mask."""
    weights = tl.where(mask, 1.0, 0.0)
    if weights_ptr is not None:
        weights = tl.load(weights_ptr + index, mask=mask, other=0.0).to(tl.float32)
    return weights


@triton.jit
def weights_in_question(step_weights_ptr, weights_ptr, cu_steps_ptr, first, last, step, mask):
    """The weight of each step times that of its solution; 0 outside the mask."""
    weights = load_weights(step_weights_ptr, step, mask)
    if weights_ptr is not None:
        weights *= load_weights(weights_ptr, solution_of(cu_steps_ptr, first, last, step), mask)
    return weights


@triton.jit
def _divide(high, low, n):
    """(high + low) / n for a whole number n, as a float and a small rest."""
    quotient = high / n
    top = quotient * 4097.0  # 4097 = 2^12 + 1 splits a float into two halves
    top -= top - quotient
    remainder = (high - top * n) - (quotient - top) * n  # exact for n up to 4096
    return quotient, (remainder + low) / n


@triton.jit
def solution_score(q_ptr, start, end, temperature, COMPARE: tl.constexpr, BLOCK: tl.constexpr):
    """The score of the solution with the steps start..end, by the aggregator of a listwise loss; 0 without steps.

    It is a float and a small rest: scores are compared, and a sum of large terms differs from another by less than it
    is rounded by."""
    high = 0.0
    low = 0.0
    m = EMPTY_MAX + 0.0
    s = 0.0
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        q = tl.load(q_ptr + step, mask=step < end, other=0.0)
        if COMPARE == "listwise-softmin":
            # m is the largest -q; s sums e^((-q - m) / temperature)
            new_m = tl.maximum(m, tl.max(tl.where(step < end, -q, EMPTY_MAX), 0))
            s *= tl.exp((m - new_m) / temperature)
            s += tl.sum(tl.where(step < end, tl.exp((-q - new_m) / temperature), 0.0), 0)
            m = new_m
        else:
            if COMPARE == "listwise":
                q = tl.where(step < end, -softplus(-q), 0.0)
            block_high, block_low = tl.reduce((q, tl.zeros_like(q)), 0, add_pairs)
            high, low = add_pairs(high, low, block_high, block_low)
    if start < end:
        length = (end - start).to(tl.float32)
        if COMPARE == "listwise-softmin":
            high, low = add_exact(-m, -temperature * tl.log(s / length))
        elif COMPARE == "listwise-mean":
            high, low = _divide(high, low, length)
        high, low = add_exact(high, low)
    return high, low


@triton.jit
def solution_outcome(outcomes_ptr, labels_ptr, solution, start, end, BLOCK: tl.constexpr):
    """RIGHT, WRONG or NOT_KNOWN. Without `outcomes_ptr` a solution is right if none of its steps is wrong."""
    if outcomes_ptr is None:
        _, first_wrong = count_correct(labels_ptr, start, end, BLOCK)
        outcome = tl.where(first_wrong < end, WRONG, RIGHT)
    else:
        given = tl.load(outcomes_ptr + solution).to(tl.float32)
        outcome = tl.where(given >= 0.5, RIGHT, tl.where(given < 0.5, WRONG, NOT_KNOWN))
    return tl.where(start < end, outcome, NOT_KNOWN)
