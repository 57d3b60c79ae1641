"""Triton device code of the losses: of each function in `reference.py` a twin, with its gradient by the scores.

A twin takes the steps start..end of one trajectory, `(q_ptr, labels_ptr, [x_ptr,] dq_ptr, start, end, zeta,
scale, BLOCK)`; it returns scale * loss and stores scale * dloss/dq of every step. Sweeps of BLOCK steps make any
length possible, in time linear in it but for `pairwise`. All arithmetic is float32, arranged so that no small result
is the difference of large numbers: a loss of 1e-12 is as exact, in relative terms, as one of 1.

The rank losses are chains of logistic terms. With S_0 = log(1 + N), S_i = log(e^S_0 + sum_{k<=i} e^q_ck) over the
correct steps c_1, c_2, ... and x_i = q_ci - S_{i-1},
    term_i   = S_i - q_ci = softplus(-x_i)
    dL/dq_ci = u_i - sigmoid(-x_i) (1 + u_i), where u_{i-1} = sigmoid(-x_i) (1 + u_i), and u_last = 0
    dL/dq_w  = e^(q_w + zeta - S_0) (1 + u_0)
so that x alone is kept, in `x_ptr`, between a sweep up and a sweep down. Sums of exponentials are pairs (m, s) that
stand for s e^m, where m is the largest exponent: s >= 1 unless nothing was summed.
"""

import triton
import triton.language as tl

NOTHING = tl.constexpr(-1e38)  # the maximum of no scores; finite, so that NOTHING - NOTHING is 0
# The tile of pairs of `pairwise`: larger ones would spill registers.
HIGH = tl.constexpr(16)
LOW = tl.constexpr(8)


@triton.jit
def _log1p(e):
    """log(1 + e) for -1 < e <= 1; what rounding e to 1 + e loses is put back."""
    rounded = (1.0 + e) - 1.0
    nothing = rounded == 0.0
    return tl.where(nothing, e, tl.log(1.0 + rounded) * (e / tl.where(nothing, 1.0, rounded)))


@triton.jit
def _softplus(x):
    return tl.maximum(x, 0.0) + _log1p(tl.exp(-tl.abs(x)))


@triton.jit
def _sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x > 0, 1.0, e) / (1.0 + e)


@triton.jit
def _join(max_a, sum_a, max_b, sum_b):
    """The (m, s) of the union of two sets."""
    m = tl.maximum(max_a, max_b)
    return m, sum_a * tl.exp(max_a - m) + sum_b * tl.exp(max_b - m)


@triton.jit
def _take_in(m, s, exponent, lost, mask):
    """The (m, s) of a set and of the exponents in the mask, each of which is `exponent + lost`."""
    exponent = tl.where(mask, exponent, NOTHING)
    new_m = tl.maximum(m, tl.max(exponent, 0))
    return new_m, s * tl.exp(m - new_m) + tl.sum(tl.where(mask, tl.exp((exponent - new_m) + lost), 0.0), 0)


@triton.jit
def _then(gain_a, offset_a, gain_b, offset_b):
    """Linear maps u -> gain * u + offset: first a, then b."""
    return gain_a * gain_b, offset_a * gain_b + offset_b


@triton.jit
def _labels(labels_ptr, step, mask):
    """Labels in float32, from any dtype; 0 outside the mask."""
    return tl.load(labels_ptr + step, mask=mask, other=0).to(tl.float32)


@triton.jit
def _is(correct: tl.constexpr, labels_ptr, step, mask):
    """Whether each step is correct, or wrong; False outside the mask."""
    return mask & ((_labels(labels_ptr, step, mask) > 0.5) == correct)


@triton.jit
def _count(labels_ptr, start, end, BLOCK: tl.constexpr):
    """The number of correct steps, and the first wrong step: `end` if there is none."""
    num_correct = 0
    first_wrong = end
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        num_correct += tl.sum(_is(True, labels_ptr, step, step < end).to(tl.int32), 0)
        wrong = _is(False, labels_ptr, step, step < end)
        first_wrong = tl.minimum(first_wrong, tl.min(tl.where(wrong, step, end), 0))
    return num_correct, first_wrong


@triton.jit
def _chain(
    q_ptr, labels_ptr, x_ptr, dq_ptr, origin, length, m, s, scale,
    WALK: tl.constexpr, CORRECT: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The terms softplus(-x_i) over the correct (or the wrong) ones of the steps origin + WALK * (0..length), where
    S_0 is (m, s). Stores scale * gradient of those steps, or adds it. Returns the sum of the terms and u_0."""
    offset = tl.arange(0, BLOCK)
    total = 0.0
    tl.debug_barrier()  # x may still be read by the chain before
    # Sweep up: S_{i-1} before each step is a scan over the steps shifted by one.
    for first in range(0, length, BLOCK):
        step = origin + WALK * (first + offset)
        inside = first + offset < length
        before = inside & (offset > 0)
        previous = tl.load(q_ptr + step - WALK, mask=before, other=0.0)
        counted = _is(CORRECT, labels_ptr, step - WALK, before)
        # The sums of earlier blocks enter as the first element.
        element_m = tl.where(offset == 0, m, tl.where(counted, previous, NOTHING))
        element_s = tl.where(offset == 0, s, tl.where(counted, 1.0, 0.0))
        scan_m, scan_s = tl.associative_scan((element_m, element_s), 0, _join)
        q = tl.load(q_ptr + step, mask=inside, other=0.0)
        member = _is(CORRECT, labels_ptr, step, inside)
        x = (q - scan_m) - tl.log(tl.maximum(scan_s, 1.0))
        total += tl.sum(tl.where(member, _softplus(-x), 0.0), 0)
        tl.store(x_ptr + step, x, mask=inside)
        # Carry on with the sums up to and with the last step of the block.
        at_end = offset == BLOCK - 1
        last_m = tl.sum(tl.where(at_end, scan_m, 0.0), 0)
        last_s = tl.sum(tl.where(at_end, scan_s, 0.0), 0)
        own_m = tl.max(tl.where(at_end & member, q, NOTHING), 0)
        own_s = tl.sum(tl.where(at_end & member, 1.0, 0.0), 0)
        m, s = _join(last_m, last_s, own_m, own_s)

    # Sweep down: u after each step is again a scan over the steps shifted by one, now from the last step.
    tl.debug_barrier()  # other threads read x than wrote it
    u = 0.0
    for first in range(0, length, BLOCK):
        place = length - 1 - first - offset
        step = origin + WALK * place
        after = (place >= -1) & (offset > 0)  # the place before the first yields u_0
        counted = _is(CORRECT, labels_ptr, step + WALK, after)
        shrink = _sigmoid(-tl.load(x_ptr + step + WALK, mask=after, other=0.0))
        # The steps of the blocks before enter as the first element, a constant map.
        gain = tl.where(offset == 0, 0.0, tl.where(counted, shrink, 1.0))
        added = tl.where(offset == 0, u, tl.where(counted, shrink, 0.0))
        _, below = tl.associative_scan((gain, added), 0, _then)
        member = _is(CORRECT, labels_ptr, step, place >= 0)
        passed = _sigmoid(-tl.load(x_ptr + step, mask=member, other=0.0)) * (1.0 + below)
        gradient = (below - passed) * scale
        if ADD:
            gradient += tl.load(dq_ptr + step, mask=member, other=0.0)
        tl.store(dq_ptr + step, gradient, mask=member)
        u = tl.sum(tl.where(offset == BLOCK - 1, tl.where(member, passed, below), 0.0), 0)
    return total, u


@triton.jit
def _rank_terms(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, stop, zeta, scale, BLOCK: tl.constexpr):
    """Sum of the terms of `rank`, with N over the wrong steps before `stop`; stores scale * gradient of all steps."""
    m = NOTHING + 0.0
    s = 0.0
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        q = tl.load(q_ptr + step, mask=step < end, other=0.0)
        negative, lost = _shift(q, zeta)
        in_n = _is(False, labels_ptr, step, step < end) & (step < stop)
        m, s = _take_in(m, s, negative, lost, in_n)
    n_m = tl.maximum(m, 0.0)
    n_s = tl.exp(-n_m) + s * tl.exp(m - n_m)  # with Q_0 = 0: 1 + N
    total, u = _chain(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end - start, n_m, n_s, scale, 1, True, False, BLOCK)
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        wrong = _is(False, labels_ptr, step, step < end)
        q = tl.load(q_ptr + step, mask=wrong, other=0.0)
        negative, lost = _shift(q, zeta)
        share = tl.exp(tl.where(wrong & (step < stop), ((negative - n_m) + lost) - tl.log(n_s), NOTHING))
        tl.store(dq_ptr + step, share * (1.0 + u) * scale, mask=wrong)
    return _softplus(m + tl.log(tl.maximum(s, 1.0))) + total


@triton.jit
def _shift(q, zeta):
    """q + zeta as the rounded sum and what rounding lost: a large score would lose digits of zeta."""
    total = q + zeta
    of_zeta = total - q
    return total, (q - (total - of_zeta)) + (zeta - of_zeta)


@triton.jit
def rank(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, zeta, scale, BLOCK: tl.constexpr):
    num_correct, first_wrong = _count(labels_ptr, start, end, BLOCK)
    scale /= tl.maximum(num_correct + (first_wrong < end).to(tl.int32), 1).to(tl.float32)
    return _rank_terms(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, end, zeta, scale, BLOCK) * scale


@triton.jit
def rank_theory(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, zeta, scale, BLOCK: tl.constexpr):
    scale /= tl.maximum(end - start, 1).to(tl.float32)
    total = _rank_terms(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, end, zeta, scale, BLOCK)
    # The wrong steps from the last to the first: below the last one is nothing, so that its term is 0.
    m = tl.full([], NOTHING, tl.float32)
    s = tl.full([], 0.0, tl.float32)
    ordered, _ = _chain(q_ptr, labels_ptr, x_ptr, dq_ptr, end - 1, end - start, m, s, scale, -1, False, True, BLOCK)
    return (total + ordered) * scale


@triton.jit
def rank_first_error(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, scale, BLOCK: tl.constexpr):
    num_correct, first_wrong = _count(labels_ptr, start, end, BLOCK)
    scale /= tl.maximum(num_correct + (first_wrong < end).to(tl.int32), 1).to(tl.float32)
    stop = first_wrong + 1
    return _rank_terms(q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, stop, 0.0, scale, BLOCK) * scale


@triton.jit
def pairwise(q_ptr, labels_ptr, dq_ptr, start, end, zeta, scale):
    length = (end - start).to(tl.float32)
    scale /= tl.maximum(length * (length + 1.0) / 2.0, 1.0)
    total = 0.0
    for first in range(start, end, HIGH):
        step = first + tl.arange(0, HIGH)
        inside = step < end
        q = tl.load(q_ptr + step, mask=inside, other=0.0)
        wrong = _is(False, labels_ptr, step, inside)
        place = tl.where(wrong, step - start + 1, start - step - 1)  # in the chain: Q_0 is 0, lower scores are > 0
        # The pair with Q_0.
        sign = tl.where(wrong, 1.0, -1.0)
        excess = sign * q + tl.where(wrong, zeta, 0.0)
        loss = _softplus(excess)
        gradient = sign * _sigmoid(excess)
        for first_other in range(start, end, LOW):
            other = first_other + tl.arange(0, LOW)
            q_other = tl.load(q_ptr + other, mask=other < end, other=0.0)
            wrong_other = _is(False, labels_ptr, other, other < end)
            place_other = tl.where(wrong_other, other - start + 1, start - other - 1)
            margin = zeta * (wrong_other.to(tl.float32)[None, :] - wrong.to(tl.float32)[:, None])
            above = (q_other[None, :] - q[:, None]) + margin
            higher = place[:, None] < place_other[None, :]
            above = tl.where(higher, above, -above)
            pair = (step[:, None] != other[None, :]) & (other < end)[None, :]
            share = tl.where(pair, _sigmoid(above), 0.0)
            gradient += tl.sum(tl.where(higher, -share, share), 1)
            loss += tl.sum(tl.where(pair & higher, _softplus(above), 0.0), 1)  # each pair once
        total += tl.sum(tl.where(inside, loss, 0.0), 0)
        tl.store(dq_ptr + step, gradient * scale, mask=inside)
    return total * scale


@triton.jit
def crm(q_ptr, labels_ptr, dq_ptr, start, end, scale, BLOCK: tl.constexpr):
    _, first_wrong = _count(labels_ptr, start, end, BLOCK)
    total = 0.0
    h_sum = 0.0
    m = NOTHING + 0.0
    s = 0.0
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        inside = step < end
        q = tl.load(q_ptr + step, mask=inside, other=0.0)
        h = _softplus(-q)
        # h underflows where a score is large; its logarithm does not.
        large = tl.maximum(q, 16.0)
        log_h = tl.where(q > 16.0, -large - 0.5 * tl.exp(-large), tl.log(tl.where(q > 16.0, 1.0, h)))
        m, s = _take_in(m, s, log_h, 0.0, inside)
        h_sum += tl.sum(tl.where(inside, h, 0.0), 0)
        total += tl.sum(tl.where(step < first_wrong, tl.where(inside, h, 0.0), 0.0), 0)
        total += tl.sum(tl.where(inside & (step == first_wrong), _softplus(q), 0.0), 0)
    # log(1 - e^-H) = m + rest: below H = 1 by its series, where log H = m + log s.
    small = h_sum < 1.0
    h2 = tl.minimum(h_sum, 1.0) * tl.minimum(h_sum, 1.0)
    series = tl.log(tl.maximum(s, 1.0)) - 0.5 * h_sum + h2 * (1 / 24 - h2 * (1 / 2880 - h2 * (1 / 181440)))
    rest = tl.where(small, series, _log1p(-tl.exp(-tl.maximum(h_sum, 1.0))))
    m = tl.where(small, m, 0.0)
    failed = first_wrong < end
    total -= tl.where(failed, m + rest, 0.0)
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        q = tl.load(q_ptr + step, mask=step < end, other=0.0)
        # sigmoid(-q) / (e^H - 1)
        exponent = (-_softplus(q) - m) - (rest + h_sum)
        gradient = tl.where(failed, tl.exp(tl.where(failed, exponent, 0.0)), 0.0)
        gradient -= tl.where(step < first_wrong, _sigmoid(-q), 0.0)
        gradient += tl.where(step == first_wrong, _sigmoid(q), 0.0)
        tl.store(dq_ptr + step, gradient * scale, mask=step < end)
    return total * scale


@triton.jit
def _excess(q, y):
    """sigmoid(q) - y, without cancellation where y is 0 or 1."""
    return (1.0 - y) * _sigmoid(q) - y * _sigmoid(-q)


@triton.jit
def bce(q_ptr, labels_ptr, dq_ptr, start, end, scale, BLOCK: tl.constexpr):
    total = 0.0
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        inside = step < end
        q = tl.load(q_ptr + step, mask=inside, other=0.0)
        y = _labels(labels_ptr, step, inside)
        total += tl.sum(tl.where(inside, y * _softplus(-q) + (1.0 - y) * _softplus(q), 0.0), 0)
        tl.store(dq_ptr + step, _excess(q, y) * scale, mask=inside)
    return total * scale


@triton.jit
def mse(q_ptr, labels_ptr, dq_ptr, start, end, scale, BLOCK: tl.constexpr):
    total = 0.0
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        inside = step < end
        q = tl.load(q_ptr + step, mask=inside, other=0.0)
        y = _labels(labels_ptr, step, inside)
        difference = _excess(q, y)
        total += tl.sum(tl.where(inside, difference * difference, 0.0), 0)
        tl.store(dq_ptr + step, 2.0 * difference * _sigmoid(q) * _sigmoid(-q) * scale, mask=inside)
    return total * scale


@triton.jit
def orm(q_ptr, labels_ptr, dq_ptr, start, end, scale, BLOCK: tl.constexpr):
    _, first_wrong = _count(labels_ptr, start, end, BLOCK)
    sign = tl.where(first_wrong < end, 1.0, -1.0)
    total = 0.0
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        last = step == end - 1
        q = tl.load(q_ptr + step, mask=last, other=0.0)
        total += tl.sum(tl.where(last, _softplus(sign * q), 0.0), 0)
        tl.store(dq_ptr + step, tl.where(last, sign * _sigmoid(sign * q), 0.0) * scale, mask=step < end)
    return total * scale


@triton.jit
def trajectory_loss(
    q_ptr, labels_ptr, x_ptr, dq_ptr, start, end, zeta, scale, LOSS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """scale * LOSS of the steps start..end; NaN if one of their scores is not finite. Stores scale * dloss/dq."""
    if LOSS == "rank":
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
        loss = bce(q_ptr, labels_ptr, dq_ptr, start, end, scale, BLOCK)
    elif LOSS == "mse":
        loss = mse(q_ptr, labels_ptr, dq_ptr, start, end, scale, BLOCK)
    else:
        tl.static_assert(LOSS == "orm")
        loss = orm(q_ptr, labels_ptr, dq_ptr, start, end, scale, BLOCK)
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        q = tl.load(q_ptr + step, mask=step < end, other=0.0)
        loss += tl.sum(q * 0.0, 0)  # some losses would not show it
    return loss
