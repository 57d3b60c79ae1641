"""Triton code of each loss: the twin of its function in `reference.py`, with the gradient by the scores.

A twin takes the steps start..end of one trajectory, `(q_ptr, labels_ptr, [weights_ptr,] [x_ptr,] dq_ptr, start, end,
[zeta,] scale, [BLOCK])`, with the weights of the steps or None; it returns scale * loss and stores scale * dloss/dq of
every step. It works in sweeps of BLOCK steps, so that any length is possible, in time linear in the length (quadratic
for `pairwise`). All arithmetic is float32, arranged so that no small result is the difference of large numbers: a loss
of 1e-12 has the same relative precision as one of 1.
"""

import triton
import triton.language as tl

from pqm_kernels.fused_step_loss.device_chain import chain, rank_terms
from pqm_kernels.fused_step_loss.device_first_error import first_error_noisy
from pqm_kernels.fused_step_loss.device_labels import count_correct, has_label, load_labels
from pqm_kernels.fused_step_loss.device_math import EMPTY_MAX, include, log1p, sigmoid, softplus
from pqm_kernels.fused_step_loss.device_solutions import load_weights

# The tile of pairs of `pairwise`: larger ones would spill registers.
ROWS_OF_PAIRS = tl.constexpr(16)
COLUMNS_OF_PAIRS = tl.constexpr(8)


@triton.jit
def rank(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, zeta, scale, BLOCK: tl.constexpr):
    num_correct, first_wrong = count_correct(labels_ptr, start, end, BLOCK)
    scale /= tl.maximum(num_correct + (first_wrong < end).to(tl.int32), 1).to(tl.float32)
    return rank_terms(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, end, zeta, scale, BLOCK) * scale


@triton.jit
def rank_theory(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, zeta, scale, BLOCK: tl.constexpr):
    scale /= tl.maximum(end - start, 1).to(tl.float32)
    total = rank_terms(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, end, zeta, scale, BLOCK)
    # The wrong steps from the last to the first: nothing ranks below the last one, so its term is 0.
    m = tl.full([], EMPTY_MAX, tl.float32)
    s = tl.full([], 0.0, tl.float32)
    ordered, _ = chain(
        q_ptr, labels_ptr, x_ptr, dq_ptr, end - 1, end - start, m, s, scale,
        DIRECTION=-1, CORRECT=False, ADD=True, BLOCK=BLOCK,
    )  # fmt: skip
    return (total + ordered) * scale


@triton.jit
def rank_first_error(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, scale, BLOCK: tl.constexpr):
    num_correct, first_wrong = count_correct(labels_ptr, start, end, BLOCK)
    scale /= tl.maximum(num_correct + (first_wrong < end).to(tl.int32), 1).to(tl.float32)
    stop = first_wrong + 1
    return rank_terms(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, stop, 0.0, scale, BLOCK) * scale


@triton.jit
def pairwise(q_ptr, labels_ptr, dq_ptr, start, end, zeta, scale):
    length = (end - start).to(tl.float32)
    scale /= tl.maximum(length * (length + 1.0) / 2.0, 1.0)
    total = 0.0
    for first in range(start, end, ROWS_OF_PAIRS):
        step = first + tl.arange(0, ROWS_OF_PAIRS)
        inside = step < end
        q = tl.load(q_ptr + step, mask=inside, other=0.0)
        wrong = has_label(False, labels_ptr, step, inside)
        # The position in the chain: that of Q_0 is 0, and scores that should be lower have higher positions.
        position = tl.where(wrong, step - start + 1, start - step - 1)
        # The pair with Q_0.
        sign = tl.where(wrong, 1.0, -1.0)
        excess = sign * q + tl.where(wrong, zeta, 0.0)
        loss = softplus(excess)
        gradient = sign * sigmoid(excess)
        for first_other in range(start, end, COLUMNS_OF_PAIRS):
            other = first_other + tl.arange(0, COLUMNS_OF_PAIRS)
            q_other = tl.load(q_ptr + other, mask=other < end, other=0.0)
            wrong_other = has_label(False, labels_ptr, other, other < end)
            position_other = tl.where(wrong_other, other - start + 1, start - other - 1)
            margin = zeta * (wrong_other.to(tl.float32)[None, :] - wrong.to(tl.float32)[:, None])
            above = (q_other[None, :] - q[:, None]) + margin
            higher = position[:, None] < position_other[None, :]
            above = tl.where(higher, above, -above)
            pair = (step[:, None] != other[None, :]) & (other < end)[None, :]
            share = tl.where(pair, sigmoid(above), 0.0)
            gradient += tl.sum(tl.where(higher, -share, share), 1)
            loss += tl.sum(tl.where(pair & higher, softplus(above), 0.0), 1)  # each pair once
        total += tl.sum(tl.where(inside, loss, 0.0), 0)
        tl.store(dq_ptr + step, gradient * scale, mask=inside)
    return total * scale


@triton.jit
def crm(q_ptr, labels_ptr, dq_ptr, start, end, scale, BLOCK: tl.constexpr):
    _, first_wrong = count_correct(labels_ptr, start, end, BLOCK)
    total = 0.0
    h_sum = 0.0
    m = EMPTY_MAX + 0.0
    s = 0.0
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        inside = step < end
        q = tl.load(q_ptr + step, mask=inside, other=0.0)
        h = softplus(-q)
        # h underflows where a score is large; its logarithm does not.
        large = tl.maximum(q, 16.0)
        log_h = tl.where(q > 16.0, -large - 0.5 * tl.exp(-large), tl.log(tl.where(q > 16.0, 1.0, h)))
        m, s = include(m, s, log_h, 0.0, inside)
        h_sum += tl.sum(tl.where(inside, h, 0.0), 0)
        total += tl.sum(tl.where(step < first_wrong, tl.where(inside, h, 0.0), 0.0), 0)
        total += tl.sum(tl.where(inside & (step == first_wrong), softplus(q), 0.0), 0)
    # log(1 - e^-H) = m + rest: below H = 1 by its series, where log H = m + log s.
    small = h_sum < 1.0
    h2 = tl.minimum(h_sum, 1.0) * tl.minimum(h_sum, 1.0)
    series = tl.log(tl.maximum(s, 1.0)) - 0.5 * h_sum + h2 * (1 / 24 - h2 * (1 / 2880 - h2 * (1 / 181440)))
    rest = tl.where(small, series, log1p(-tl.exp(-tl.maximum(h_sum, 1.0))))
    m = tl.where(small, m, 0.0)
    failed = first_wrong < end
    total -= tl.where(failed, m + rest, 0.0)
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        q = tl.load(q_ptr + step, mask=step < end, other=0.0)
        # sigmoid(-q) / (e^H - 1)
        exponent = (-softplus(q) - m) - (rest + h_sum)
        gradient = tl.where(failed, tl.exp(tl.where(failed, exponent, 0.0)), 0.0)
        gradient -= tl.where(step < first_wrong, sigmoid(-q), 0.0)
        gradient += tl.where(step == first_wrong, sigmoid(q), 0.0)
        tl.store(dq_ptr + step, gradient * scale, mask=step < end)
    return total * scale


@triton.jit
def _excess(q, y):
    """sigmoid(q) - y, without cancellation where y is 0 or 1."""
    return (1.0 - y) * sigmoid(q) - y * sigmoid(-q)


@triton.jit
def bce(q_ptr, labels_ptr, weights_ptr, dq_ptr, start, end, scale, BLOCK: tl.constexpr):
    return _bce_until(q_ptr, labels_ptr, weights_ptr, dq_ptr, start, end, end, scale, BLOCK)


@triton.jit
def first_error(q_ptr, labels_ptr, weights_ptr, dq_ptr, start, end, scale, BLOCK: tl.constexpr):
    _, first_wrong = count_correct(labels_ptr, start, end, BLOCK)
    return _bce_until(q_ptr, labels_ptr, weights_ptr, dq_ptr, start, end, first_wrong + 1, scale, BLOCK)


@triton.jit
def _bce_until(q_ptr, labels_ptr, weights_ptr, dq_ptr, start, end, stop, scale, BLOCK: tl.constexpr):
    """bce of the steps before `stop`; the others have no term."""
    total = 0.0
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        counted = (step < end) & (step < stop)
        q = tl.load(q_ptr + step, mask=counted, other=0.0)
        y = load_labels(labels_ptr, step, counted)
        weight = load_weights(weights_ptr, step, counted)
        total += tl.sum(weight * (y * softplus(-q) + (1.0 - y) * softplus(q)), 0)
        tl.store(dq_ptr + step, weight * _excess(q, y) * scale, mask=step < end)
    return total * scale


@triton.jit
def mse(q_ptr, labels_ptr, weights_ptr, dq_ptr, start, end, scale, BLOCK: tl.constexpr):
    total = 0.0
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        inside = step < end
        q = tl.load(q_ptr + step, mask=inside, other=0.0)
        y = load_labels(labels_ptr, step, inside)
        weight = load_weights(weights_ptr, step, inside)
        difference = _excess(q, y)
        total += tl.sum(weight * difference * difference, 0)
        tl.store(dq_ptr + step, weight * 2.0 * difference * sigmoid(q) * sigmoid(-q) * scale, mask=inside)
    return total * scale


@triton.jit
def orm(q_ptr, labels_ptr, dq_ptr, start, end, scale, BLOCK: tl.constexpr):
    _, first_wrong = count_correct(labels_ptr, start, end, BLOCK)
    sign = tl.where(first_wrong < end, 1.0, -1.0)
    total = 0.0
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        last = step == end - 1
        q = tl.load(q_ptr + step, mask=last, other=0.0)
        total += tl.sum(tl.where(last, softplus(sign * q), 0.0), 0)
        tl.store(dq_ptr + step, tl.where(last, sign * sigmoid(sign * q), 0.0) * scale, mask=step < end)
    return total * scale


@triton.jit
def no_loss(dq_ptr, start, end, BLOCK: tl.constexpr):
    """0, where only questions have a loss."""
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        tl.store(dq_ptr + step, tl.zeros([BLOCK], tl.float32), mask=step < end)
    return 0.0


@triton.jit
def trajectory_loss(
    q_ptr, labels_ptr, weights_ptr, x_ptr, dq_ptr, start, end, zeta, before, after, scale,
    LOSS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """scale * LOSS of the steps start..end; NaN if one of their scores is not finite. Stores scale * dloss/dq. LOSS may
    be None."""
    if LOSS is None:
        loss = no_loss(dq_ptr, start, end, BLOCK)
    elif LOSS == "rank":
        loss = rank(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, zeta, scale, BLOCK)
    elif LOSS == "rank-theory":
        loss = rank_theory(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, zeta, scale, BLOCK)
    elif LOSS == "rank-first-error":
        loss = rank_first_error(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, scale, BLOCK)
    elif LOSS == "pairwise":
        loss = pairwise(q_ptr, labels_ptr, dq_ptr, start, end, zeta, scale)
    elif LOSS == "crm":
        loss = crm(q_ptr, labels_ptr, dq_ptr, start, end, scale, BLOCK)
    elif LOSS == "bce":
        loss = bce(q_ptr, labels_ptr, weights_ptr, dq_ptr, start, end, scale, BLOCK)
    elif LOSS == "mse":
        loss = mse(q_ptr, labels_ptr, weights_ptr, dq_ptr, start, end, scale, BLOCK)
    elif LOSS == "orm":
        loss = orm(q_ptr, labels_ptr, dq_ptr, start, end, scale, BLOCK)
    elif LOSS == "first-error":
        loss = first_error(q_ptr, labels_ptr, weights_ptr, dq_ptr, start, end, scale, BLOCK)
    else:
        tl.static_assert(LOSS == "first-error-noisy")
        loss = first_error_noisy(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, before, after, scale, BLOCK)
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        q = tl.load(q_ptr + step, mask=step < end, other=0.0)
        loss += tl.sum(q * 0.0, 0)  # makes the loss NaN, also where it does not depend on this score
    return loss
