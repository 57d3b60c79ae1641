"""Triton code that relates steps to the solutions of a question: whose they are, their weights, scores and outcomes."""

import triton
import triton.language as tl

from pqm_kernels.fused_step_loss.device_labels import count_correct
from pqm_kernels.fused_step_loss.device_math import EMPTY_MAX, include, softplus

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
def solution_score(q_ptr, start, end, temperature, COMPARE: tl.constexpr, BLOCK: tl.constexpr):
    """The score of the solution with the steps start..end, by the aggregator of a listwise loss; 0 without steps."""
    total = 0.0
    m = EMPTY_MAX + 0.0
    s = 0.0
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        q = tl.load(q_ptr + step, mask=step < end, other=0.0)
        if COMPARE == "listwise-softmin":
            m, s = include(m, s, -q / temperature, 0.0, step < end)
        elif COMPARE == "listwise-mean":
            total += tl.sum(q, 0)
        else:
            tl.static_assert(COMPARE == "listwise")
            total -= tl.sum(tl.where(step < end, softplus(-q), 0.0), 0)
    length = tl.maximum(end - start, 1).to(tl.float32)
    if COMPARE == "listwise-softmin":
        total = tl.where(start < end, -temperature * (m + tl.log(tl.maximum(s, 1.0) / length)), 0.0)
    elif COMPARE == "listwise-mean":
        total /= length
    return total


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
