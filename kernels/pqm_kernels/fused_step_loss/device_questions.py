"""Triton code of each loss that compares the solutions of a question: the twin of its function in
`reference_questions.py`, with the gradient by the scores.

The solutions first..last - 1 of the question have the steps start..end. A twin returns scale * loss and adds
scale * dloss/dq to the gradient of every step. Weights and precision as in the reference and in device_losses.py.
"""

import triton
import triton.language as tl

from pqm_kernels.fused_step_loss.device_chain import chain
from pqm_kernels.fused_step_loss.device_labels import has_label
from pqm_kernels.fused_step_loss.device_math import EMPTY_MAX, add_exact, include, sigmoid, softplus
from pqm_kernels.fused_step_loss.device_solutions import (
    RIGHT,
    WRONG,
    load_weights,
    solution_of,
    weights_in_question,
)

# The tile of pairs of `sibling`: larger ones would spill registers.
ROWS_OF_PAIRS = tl.constexpr(16)
COLUMNS_OF_PAIRS = tl.constexpr(8)


@triton.jit
def _add_gradient(dq_ptr, step, gradient, mask):
    tl.store(dq_ptr + step, tl.load(dq_ptr + step, mask=mask, other=0.0) + gradient, mask=mask)


@triton.jit
def sibling(
    q_ptr, labels_ptr, dq_ptr, cu_steps_ptr, order_ptr, first_ptr, end_ptr, step_weights_ptr, weights_ptr,
    first_solution, last_solution, start, end, scale,
):  # fmt: skip
    total = 0.0
    for begin in range(start, end, ROWS_OF_PAIRS):
        position = begin + tl.arange(0, ROWS_OF_PAIRS)
        inside = position < end
        step = tl.load(order_ptr + position, mask=inside, other=0)
        siblings_from = tl.load(first_ptr + position, mask=inside, other=0)
        siblings_to = tl.load(end_ptr + position, mask=inside, other=0)
        q = tl.load(q_ptr + step, mask=inside, other=0.0)
        correct = has_label(True, labels_ptr, step, inside)
        weight = weights_in_question(
            step_weights_ptr, weights_ptr, cu_steps_ptr, first_solution, last_solution, step, inside
        )
        loss = tl.zeros([ROWS_OF_PAIRS], tl.float32)
        gradient = tl.zeros([ROWS_OF_PAIRS], tl.float32)
        rivals = tl.zeros([ROWS_OF_PAIRS], tl.float32)  # weight of the siblings with the other label
        allies = tl.zeros([ROWS_OF_PAIRS], tl.float32)
        low = tl.min(tl.where(inside, siblings_from, end), 0)
        high = tl.max(siblings_to, 0)
        for begin_other in range(low, high, COLUMNS_OF_PAIRS):
            other = begin_other + tl.arange(0, COLUMNS_OF_PAIRS)
            other_step = tl.load(order_ptr + other, mask=other < high, other=0)
            q_other = tl.load(q_ptr + other_step, mask=other < high, other=0.0)
            correct_other = has_label(True, labels_ptr, other_step, other < high)
            weight_other = weights_in_question(
                step_weights_ptr, weights_ptr, cu_steps_ptr, first_solution, last_solution, other_step, other < high
            )
            related = (siblings_from[:, None] <= other[None, :]) & (other[None, :] < siblings_to[:, None])
            shared = tl.where(related, weight_other[None, :], 0.0)
            opposed = tl.where(correct[:, None] != correct_other[None, :], shared, 0.0)
            above = q_other[None, :] - q[:, None]
            above = tl.where(correct[:, None], above, -above)  # the wrong score minus the correct one
            loss += tl.sum(opposed * softplus(above), 1)
            gradient += tl.sum(opposed * sigmoid(above), 1)
            rivals += tl.sum(opposed, 1)
            allies += tl.sum(shared - opposed, 1)
        pairs = rivals * allies
        factor = tl.where(pairs > 0.0, weight * (rivals + allies) / tl.where(pairs > 0.0, pairs, 1.0), 0.0) * scale
        total += tl.sum(tl.where(correct, loss * factor, 0.0), 0)  # each pair once
        _add_gradient(dq_ptr, step, tl.where(correct, -gradient, gradient) * factor, inside)
    return total


@triton.jit
def group_rank(
    q_ptr, labels_ptr, x_ptr, dq_ptr, cu_steps_ptr, weights_ptr, first_solution, last_solution, start, end, zeta,
    scale, ORDERED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`group-rank` or, if not ORDERED, `group-contrastive`. With S_0 = log(1 + N), the terms of a solution are S_0, and
    the chain of its correct steps from S_0, or softplus(S_0 - q_c) for each."""
    m = EMPTY_MAX + 0.0
    s = 0.0
    num_correct = 0.0
    num_solutions = 0.0
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        weight = weights_in_question(None, weights_ptr, cu_steps_ptr, first_solution, last_solution, step, step < end)
        wrong = has_label(False, labels_ptr, step, step < end) & (weight > 0.0)
        q = tl.load(q_ptr + step, mask=step < end, other=0.0)
        negative, error = add_exact(q, zeta)
        m, s = include(m, s, negative, error + tl.log(tl.where(wrong, weight, 1.0)), wrong)
        num_correct += tl.sum(tl.where(has_label(True, labels_ptr, step, step < end), weight, 0.0), 0)
    for first in range(first_solution, last_solution, BLOCK):
        solution = first + tl.arange(0, BLOCK)
        exists = solution < last_solution
        begin = tl.load(cu_steps_ptr + solution, mask=exists, other=0)
        has_steps = exists & (begin < tl.load(cu_steps_ptr + solution + 1, mask=exists, other=0))
        num_solutions += tl.sum(load_weights(weights_ptr, solution, has_steps), 0)
    n_m = tl.maximum(m, 0.0)
    n_s = tl.exp(-n_m) + s * tl.exp(m - n_m)  # with Q_0 = 0: 1 + N
    # Weights below 1 can make it less than 1, which a chain cannot start from. A whole number is subtracted exactly.
    shift = tl.ceil(-tl.log(tl.minimum(n_s, 1.0)))
    n_m -= shift
    n_s *= tl.exp(shift)
    has_wrong = s > 0.0
    s_0 = tl.where(has_wrong, softplus(m + tl.log(tl.where(has_wrong, s, 1.0))), 0.0)
    num_terms = num_correct + tl.where(has_wrong, num_solutions, 0.0)
    scale *= num_solutions / tl.where(num_terms > 0.0, num_terms, 1.0)
    total = s_0 * num_solutions
    from_s_0 = num_solutions  # the derivative of the sum of the terms by S_0
    if ORDERED:
        for solution in range(first_solution, last_solution):
            begin = tl.load(cu_steps_ptr + solution).to(tl.int64)
            length = tl.load(cu_steps_ptr + solution + 1).to(tl.int64) - begin
            weight = 1.0
            if weights_ptr is not None:
                weight = tl.load(weights_ptr + solution).to(tl.float32)
            terms, u = chain(
                q_ptr, labels_ptr, x_ptr, dq_ptr, begin, length, n_m, n_s, scale * weight,
                DIRECTION=1, CORRECT=True, ADD=True, BLOCK=BLOCK,
            )  # fmt: skip
            total += weight * terms
            from_s_0 += weight * u
    else:
        for first in range(start, end, BLOCK):
            step = first + tl.arange(0, BLOCK)
            weight = weights_in_question(
                None, weights_ptr, cu_steps_ptr, first_solution, last_solution, step, step < end
            )
            correct = has_label(True, labels_ptr, step, step < end)
            q = tl.load(q_ptr + step, mask=step < end, other=0.0)
            excess = (n_m - q) + tl.log(n_s)
            total += tl.sum(tl.where(correct, weight * softplus(excess), 0.0), 0)
            pull = tl.where(correct, weight * sigmoid(excess), 0.0)
            from_s_0 += tl.sum(pull, 0)
            _add_gradient(dq_ptr, step, -pull * scale, correct)
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        weight = weights_in_question(None, weights_ptr, cu_steps_ptr, first_solution, last_solution, step, step < end)
        wrong = has_label(False, labels_ptr, step, step < end) & (weight > 0.0)  # others may be above N
        q = tl.load(q_ptr + step, mask=wrong, other=0.0)
        negative, error = add_exact(q, zeta)
        share = weight * tl.exp(tl.where(wrong, (negative - n_m) + error, EMPTY_MAX)) / n_s
        _add_gradient(dq_ptr, step, share * from_s_0 * scale, wrong)
    return total * scale


@triton.jit
def listwise(
    q_ptr, dq_ptr, cu_steps_ptr, scores_ptr, rests_ptr, outcomes_ptr, weights_ptr, first_solution, last_solution,
    start, end, temperature, scale, COMPARE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """log(1 + sum_w e^(s_w - s_r)) = softplus(M - s_r), with M the log-sum-exp over the wrong solutions w. Each s is a
    score plus a small rest."""
    m = EMPTY_MAX + 0.0
    s = 0.0
    for first in range(first_solution, last_solution, BLOCK):
        solution = first + tl.arange(0, BLOCK)
        exists = solution < last_solution
        score = tl.load(scores_ptr + solution, mask=exists, other=0.0)
        weight = load_weights(weights_ptr, solution, exists)
        wrong = exists & (tl.load(outcomes_ptr + solution, mask=exists, other=RIGHT) == WRONG) & (weight > 0.0)
        rest = tl.load(rests_ptr + solution, mask=exists, other=0.0)
        m, s = include(m, s, score, rest + tl.log(tl.where(wrong, weight, 1.0)), wrong)
    log_s = tl.log(tl.where(s > 0.0, s, 1.0))
    total = 0.0
    from_m = 0.0  # the derivative by M
    for first in range(first_solution, last_solution, BLOCK):
        solution = first + tl.arange(0, BLOCK)
        exists = solution < last_solution
        score = tl.load(scores_ptr + solution, mask=exists, other=0.0)
        right = exists & (tl.load(outcomes_ptr + solution, mask=exists, other=WRONG) == RIGHT)
        weight = load_weights(weights_ptr, solution, right)
        excess = (m - score) + (log_s - tl.load(rests_ptr + solution, mask=exists, other=0.0))
        total += tl.sum(weight * softplus(excess), 0)
        from_m += tl.sum(weight * sigmoid(excess), 0)
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        solution = solution_of(cu_steps_ptr, first_solution, last_solution, step)
        score = tl.load(scores_ptr + solution, mask=step < end, other=0.0)
        rest = tl.load(rests_ptr + solution, mask=step < end, other=0.0)
        outcome = tl.load(outcomes_ptr + solution, mask=step < end, other=RIGHT)
        weight = load_weights(weights_ptr, solution, step < end)
        excess = (m - score) + (log_s - rest)
        of_right = -weight * sigmoid(excess)
        is_rival = (outcome == WRONG) & (weight > 0.0)  # others may be above M
        of_wrong = weight * from_m * tl.exp(tl.where(is_rival, -excess, EMPTY_MAX))
        of_score = tl.where(outcome == RIGHT, of_right, tl.where(outcome == WRONG, of_wrong, 0.0))
        q = tl.load(q_ptr + step, mask=step < end, other=0.0)
        if COMPARE == "listwise":
            share = sigmoid(-q)
        else:
            begin = tl.load(cu_steps_ptr + solution, mask=step < end, other=0)
            length = (tl.load(cu_steps_ptr + solution + 1, mask=step < end, other=1) - begin).to(tl.float32)
            share = 1.0 / length
            if COMPARE == "listwise-softmin":
                share *= tl.exp(tl.where(step < end, ((score - q) + rest) / temperature, 0.0))
        _add_gradient(dq_ptr, step, of_score * share * scale, step < end)
    return total * scale


@triton.jit
def question_loss(
    q_ptr, labels_ptr, x_ptr, dq_ptr, cu_steps_ptr, scores_ptr, rests_ptr, outcomes_ptr, order_ptr, first_ptr,
    end_ptr, step_weights_ptr, weights_ptr, first_solution, last_solution, start, end, zeta, temperature, scale,
    COMPARE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """scale * COMPARE of the solutions first_solution..last_solution - 1. Adds scale * dloss/dq."""
    if COMPARE == "sibling":
        loss = sibling(
            q_ptr, labels_ptr, dq_ptr, cu_steps_ptr, order_ptr, first_ptr, end_ptr, step_weights_ptr, weights_ptr,
            first_solution, last_solution, start, end, scale,
        )  # fmt: skip
    elif COMPARE == "group-rank":
        loss = group_rank(
            q_ptr, labels_ptr, x_ptr, dq_ptr, cu_steps_ptr, weights_ptr, first_solution, last_solution, start, end,
            zeta, scale, True, BLOCK,
        )  # fmt: skip
    elif COMPARE == "group-contrastive":
        loss = group_rank(
            q_ptr, labels_ptr, None, dq_ptr, cu_steps_ptr, weights_ptr, first_solution, last_solution, start, end,
            zeta, scale, False, BLOCK,
        )  # fmt: skip
    else:
        tl.static_assert((COMPARE == "listwise") or ((COMPARE == "listwise-softmin") or (COMPARE == "listwise-mean")))
        loss = listwise(
            q_ptr, dq_ptr, cu_steps_ptr, scores_ptr, rests_ptr, outcomes_ptr, weights_ptr, first_solution,
            last_solution, start, end, temperature, scale, COMPARE, BLOCK,
        )  # fmt: skip
    return loss
