"""Every loss that compares the solutions of a question, in plain PyTorch, for a batch of questions.

Each loss is one function `(q, y, batch, options) -> [Q]` of the scores q [S] and the labels y [S] (1 correct, 0 wrong)
of all steps. An integer weight counts as so many copies of a step or of a solution. Time is linear in the steps, except
for `sibling`, which computes every pair of a correct and a wrong step behind one prefix. Precision as in reference.py.

Source of `sibling`: the pairs of PRISM (arXiv 2606.09078), which compares two steps behind one exact prefix.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pqm_kernels.fused_step_loss.checks import check_questions, check_steps, check_weights, loss_options
from pqm_kernels.fused_step_loss.reference import ABSENT, chain_terms
from pqm_kernels.losses import LOSSES, LossOptions
from pqm_kernels.sibling_index import Siblings, siblings


class Batch(NamedTuple):
    """The solutions of a batch and their questions."""

    num_questions: int
    solution: Tensor
    """[S] int64, the solution of each step."""
    question: Tensor
    """[B] int64, the question of each solution."""
    lengths: Tensor
    """[B] int64, steps of each solution."""
    siblings: Siblings | None
    outcomes: Tensor
    """[B]: 1 right, 0 wrong, NaN not known. A solution without steps is not known."""
    step_weights: Tensor
    """[S], the weight of the solution included."""
    weights: Tensor
    """[B]"""


Function = Callable[[Tensor, Tensor, Batch, LossOptions], Tensor]


def sibling(q: Tensor, y: Tensor, batch: Batch, options: LossOptions) -> Tensor:
    """Sum over prefixes p of n_p times the mean of softplus(q_j - q_i) over the pairs of a correct step i and a wrong
    step j behind p, where n_p steps are behind p. A prefix without such a pair adds 0."""
    assert batch.siblings is not None
    order, of_set = batch.siblings.order.long(), batch.siblings.first.long()
    q, correct, weights = q[order], y[order] > 0.5, batch.step_weights[order]
    right = sum_by(torch.where(correct, weights, 0.0), of_set, len(q))
    wrong = sum_by(torch.where(correct, 0.0, weights), of_set, len(q))
    has_pairs = (right * wrong > 0)[of_set]
    i, j = _pairs(of_set, has_pairs & correct, has_pairs & ~correct)
    terms = -F.logsigmoid(q[i] - q[j]) * weights[i] * weights[j]
    factor = (right + wrong) / torch.where(right * wrong > 0, right * wrong, 1.0)
    return sum_by(terms * factor[of_set[i]], batch.question[batch.solution[order[i]]], batch.num_questions)


def group_rank(q: Tensor, y: Tensor, batch: Batch, options: LossOptions) -> Tensor:
    """`rank` with N over the wrong steps of all solutions of the question: the mean of its terms, times the number of
    solutions. The terms are those of each correct step, and log(1 + N) for each solution if N is not empty."""
    s_0 = _log_one_plus_n(q, y, batch, options.zeta)[batch.question]
    valid = (
        torch.arange(max(int(batch.lengths.max()) if len(batch.lengths) else 0, 1), device=q.device)
        < batch.lengths[:, None]
    )
    padded = q.new_zeros(valid.shape).masked_scatter(valid, q)
    correct = torch.zeros_like(valid).masked_scatter(valid, y > 0.5)
    return _mean_times_solutions(chain_terms(padded, correct, s_0), s_0, y, batch)


def group_contrastive(q: Tensor, y: Tensor, batch: Batch, options: LossOptions) -> Tensor:
    """`group-rank` without the order of the correct steps: log(1 + e^q_c + N) - q_c, and log(1 + N)."""
    s_0 = _log_one_plus_n(q, y, batch, options.zeta)[batch.question]
    terms = torch.where(y > 0.5, -F.logsigmoid(q - s_0[batch.solution]), 0.0)
    return _mean_times_solutions(sum_by(terms, batch.solution, len(s_0)), s_0, y, batch)


def listwise(q: Tensor, y: Tensor, batch: Batch, options: LossOptions) -> Tensor:
    """Sum over the right solutions r of log(1 + sum_w e^(s_w - s_r)) over the wrong solutions w of the question, with
    s = sum_t log sigmoid(q_t), the aggregator `prod`."""
    return _listwise(sum_by(F.logsigmoid(q), batch.solution, len(batch.lengths)), batch)


def listwise_softmin(q: Tensor, y: Tensor, batch: Batch, options: LossOptions) -> Tensor:
    """`listwise` with the aggregator `softmin`: s = -T log(mean_t e^(-q_t / T))."""
    total = log_sum_exp_by(-q / options.temperature, batch.solution, len(batch.lengths))
    return _listwise(options.temperature * (batch.lengths.clamp(min=1).to(q.dtype).log() - total), batch)


def listwise_mean(q: Tensor, y: Tensor, batch: Batch, options: LossOptions) -> Tensor:
    """`listwise` with the aggregator `mean`: s = mean_t q_t."""
    return _listwise(sum_by(q, batch.solution, len(batch.lengths)) / batch.lengths.clamp(min=1), batch)


QUESTION_FUNCTIONS: dict[str, Function] = {
    "sibling": sibling,
    "group-rank": group_rank,
    "group-contrastive": group_contrastive,
    "listwise": listwise,
    "listwise-softmin": listwise_softmin,
    "listwise-mean": listwise_mean,
}
"""The function of each loss of a question in `LOSSES`."""


def question_losses(
    q: Tensor,
    labels: Tensor,
    cu_steps: Tensor,
    cu_groups: Tensor,
    loss: str = "sibling",
    zeta: float = 4.0,
    *,
    temperature: float = 1.0,
    parent: Tensor | None = None,
    outcomes: Tensor | None = None,
    step_weights: Tensor | None = None,
    trajectory_weights: Tensor | None = None,
) -> Tensor:
    """The loss of each question: `QUESTION_FUNCTIONS[loss]` over the solutions cu_groups[g]:cu_groups[g + 1].

    Args:
        q: [S] step scores; arithmetic and result dtype as in `trajectory_losses`.
        labels: [S] of any dtype: 1 correct, 0 wrong. Not read by a loss that `uses_outcomes`, if `outcomes` are given.
        cu_steps: [B + 1] int32 or int64: solution b has the steps cu_steps[b]:cu_steps[b + 1], possibly none.
        cu_groups: [Q + 1] int32 or int64, rising from 0 to B.
        loss: a key of `LOSSES` whose unit is a question.
        zeta: as in `LossOptions`.
        temperature: as in `LossOptions`.
        parent: [S] int32 or int64, needed by a loss that `uses_siblings`: steps of one question with equal numbers
            continue the same prefix.
        outcomes: [B] of any float dtype: from 0.5 on right, below wrong, NaN not known. Default: right if no step is
            wrong.
        step_weights: [S], for a loss that `weighs_steps`. An integer weight counts copies.
        trajectory_weights: [B]. An integer weight counts copies.

    Returns:
        [Q]. A question with nothing to compare has loss 0 and no gradient, unless it has steps of `group-rank`.

    Raises:
        ValueError: as `trajectory_losses`; also for a missing `parent`.
    """
    if q.dim() != 1 or not q.is_floating_point():
        raise ValueError(f"q must be floating point [S], found {q.dtype} {list(q.shape)}")
    check_steps(len(q), labels, cu_steps, loss, None, outcomes)
    check_questions(len(q), len(cu_steps) - 1, loss, None, cu_groups, parent, None, outcomes)
    if LOSSES[loss].unit != "question":
        raise ValueError(f"{loss!r} is a loss of trajectories: call trajectory_losses")
    check_weights(len(q), len(cu_steps) - 1, loss, step_weights, trajectory_weights)
    by_parent = None if parent is None else siblings(parent, cu_steps, cu_groups)
    options = loss_options(zeta, temperature, (0.0, 0.0))
    return question_losses_of(
        q, labels, cu_steps, cu_groups, loss, options, by_parent, outcomes, step_weights, trajectory_weights
    )


def question_losses_of(
    q: Tensor, labels: Tensor, cu_steps: Tensor, cu_groups: Tensor, loss: str, options: LossOptions,
    by_parent: Siblings | None, outcomes: Tensor | None, step_weights: Tensor | None, trajectory_weights: Tensor | None,
) -> Tensor:  # fmt: skip
    """`question_losses` after its checks, with the steps sorted by parent."""
    out_dtype = torch.promote_types(q.dtype, torch.float32)
    q = q.to(torch.float32 if q.device.type == "mps" else torch.float64)
    y, lengths, num_questions = labels.to(q.dtype), cu_steps.diff().long(), len(cu_groups) - 1
    solution = torch.arange(len(lengths), device=q.device).repeat_interleave(lengths)
    question = torch.arange(num_questions, device=q.device).repeat_interleave(cu_groups.diff().long())
    if outcomes is None:
        outcomes = (sum_by((y <= 0.5).to(q.dtype), solution, len(lengths)) == 0).to(q.dtype)
    weights = torch.ones_like(lengths, dtype=q.dtype) if trajectory_weights is None else trajectory_weights.to(q.dtype)
    of_step = weights[solution] if step_weights is None else weights[solution] * step_weights.to(q.dtype)
    outcomes = torch.where(lengths > 0, outcomes.to(q.dtype), torch.nan)
    batch = Batch(num_questions, solution, question, lengths, by_parent, outcomes, of_step, weights)
    losses = QUESTION_FUNCTIONS[loss](q, y, batch, options)
    return (losses + sum_by(q.detach() * 0.0, question[solution], num_questions)).to(out_dtype)


def sum_by(values: Tensor, index: Tensor, size: int) -> Tensor:
    """[size] sums of the values with each index."""
    return values.new_zeros(size).index_add(0, index, values)


def log_sum_exp_by(values: Tensor, index: Tensor, size: int) -> Tensor:
    """[size] log-sum-exp of the values with each index; `ABSENT` where there are none."""
    largest = values.new_full((size,), ABSENT).scatter_reduce(0, index, values.detach(), "amax")
    sums = sum_by(torch.exp(values - largest[index]), index, size)
    return largest + torch.where(sums > 0, sums, 1.0).log()


def _pairs(of_set: Tensor, correct: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
    """The positions (i, j) of every pair of a correct and a wrong step with the same set; sets are sorted."""
    i, j = correct.nonzero().squeeze(1), wrong.nonzero().squeeze(1)
    first = torch.searchsorted(of_set[j], of_set[i])
    count = torch.searchsorted(of_set[j], of_set[i], right=True) - first
    within = torch.arange(int(count.sum()), device=i.device) - (count.cumsum(0) - count).repeat_interleave(count)
    return i.repeat_interleave(count), j[first.repeat_interleave(count) + within]


def _log_one_plus_n(q: Tensor, y: Tensor, batch: Batch, zeta: float) -> Tensor:
    """[Q] log(1 + N), 0 where no step is wrong."""
    exponent = torch.where(y > 0.5, ABSENT, q + zeta + batch.step_weights.log())
    total = log_sum_exp_by(exponent, batch.question[batch.solution], batch.num_questions)
    return -F.logsigmoid(-total)


def _mean_times_solutions(terms: Tensor, s_0: Tensor, y: Tensor, batch: Batch) -> Tensor:
    """[Q] from the sum of the terms of the correct steps of each solution [B], and its S_0."""

    def total(of_solution: Tensor) -> Tensor:
        return sum_by(of_solution * batch.weights * (batch.lengths > 0), batch.question, batch.num_questions)

    correct = sum_by((y > 0.5).to(y.dtype), batch.solution, len(s_0))
    has_wrong = (total(batch.lengths - correct) > 0).to(y.dtype)[batch.question]
    num_terms = total(correct + has_wrong)
    return total(terms + s_0) * total(torch.ones_like(s_0)) / torch.where(num_terms > 0, num_terms, 1.0)


def _listwise(scores: Tensor, batch: Batch) -> Tensor:
    """[Q] from the score of each solution [B]."""
    right, wrong = batch.outcomes >= 0.5, batch.outcomes < 0.5
    rivals = torch.where(wrong & (batch.weights > 0), scores + batch.weights.log(), ABSENT)
    against = log_sum_exp_by(rivals, batch.question, batch.num_questions)[batch.question]
    return sum_by(
        torch.where(right, -F.logsigmoid(scores - against) * batch.weights, 0.0), batch.question, batch.num_questions
    )
