"""`step_loss`, the public op: from hidden states through the value head to the loss of a batch of trajectories."""

from typing import NamedTuple

import torch
from torch import Tensor

from pqm_kernels import sibling_index
from pqm_kernels.backends import pick_backend
from pqm_kernels.fused_step_loss import op
from pqm_kernels.fused_step_loss.checks import (
    check_inputs,
    check_questions,
    check_siblings,
    check_steps,
    check_weights,
    finite_number,
    loss_options,
)
from pqm_kernels.fused_step_loss.reference import trajectory_losses
from pqm_kernels.fused_step_loss.reference_questions import question_losses_of
from pqm_kernels.losses import LOSSES, default_normalizer, split_units
from pqm_kernels.row_index import StepsByRow
from pqm_kernels.sibling_index import Siblings


class StepLoss(NamedTuple):
    """The result of `step_loss`.

    Attributes:
        loss: scalar, float32 (float64 if `hidden` is), with a gradient.
        q: [S] step scores, float32 (float64 if `hidden` is), detached: only the loss has a gradient.
    """

    loss: Tensor
    q: Tensor


def step_loss(
    hidden: Tensor,
    step_index: Tensor,
    labels: Tensor,
    cu_steps: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    loss: str = "rank",
    zeta: float = 4.0,
    compare: str | None = None,
    compare_weight: float = 1.0,
    temperature: float = 1.0,
    noise: tuple[float, float] = (0.1, 0.1),
    cu_groups: Tensor | None = None,
    parent: Tensor | None = None,
    siblings: Siblings | None = None,
    outcomes: Tensor | None = None,
    step_weights: Tensor | None = None,
    trajectory_weights: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-6,
    normalizer: Tensor | float | None = None,
    steps_by_row: StepsByRow | None = None,
    backend: str = "auto",
) -> StepLoss:
    """Scores q = hidden[step_index] . weight + bias, and their loss: the sum over all trajectories / normalizer.

    A loss of questions, alone or added as `compare`, is summed over the questions:
    (sum of loss + compare_weight * sum of compare) / normalizer.

    Arithmetic is float32 for float32 and half precision, also under autocast, and float64 for float64. Only the step
    rows of `hidden` are read. hidden, weight, bias and norm_weight get a gradient if they require one.

    Args:
        hidden: [T, D], D >= 1, any strides; float32, float16, bfloat16 or, in the eager backend, float64.
        step_index: [S] int32 or int64, the row of `hidden` of each step; duplicates are allowed.
        labels: [S] of any dtype: 1 correct, 0 wrong; a loss with `soft_labels` takes any number between them.
        cu_steps: [B + 1] int32 or int64: trajectory b has the steps cu_steps[b]:cu_steps[b + 1], possibly none.
        weight: [D], any float dtype; float64 in weight, bias or norm_weight needs the eager backend.
        bias: [1], or None.
        loss: a key of `LOSSES`; docs/explanation/method.md has the formulas and their sources.
        zeta: margin between correct and wrong steps, for the losses with `uses_zeta`; a finite Python number.
        compare: None, or a loss of questions to add to a `loss` of trajectories.
        compare_weight: its factor, a finite Python number.
        temperature: of the soft minimum, for listwise-softmin; above 0. From about 100 times the spread of the scores
            on, the triton backend loses digits: take the mean instead.
        noise: for the losses with `uses_noise`, how often the label of a step before the first error is wrong, and of a
            step from there on; both in [0, 1].
        cu_groups: [Q + 1] int32 or int64: the trajectories cu_groups[g]:cu_groups[g + 1] are solutions of question g.
            Needed by a loss of questions; the others ignore it, and the next three.
        parent: [S] int32 or int64: steps of one question with equal numbers continue the same prefix. Needed by a loss
            with `uses_siblings`.
        siblings: `pqm_kernels.siblings(parent, cu_steps, cu_groups)`. If it is computed in advance, the op need not
            sort.
        outcomes: [B], any float dtype, for the losses with `uses_outcomes`: from 0.5 on the solution is right, below
            wrong; one that is NaN is not compared. Default: a solution is right if none of its steps is wrong.
        step_weights: [S], any float dtype, at least 0, for losses with `weighs_steps`: the factor of each step's term.
        trajectory_weights: [B], any float dtype, at least 0: the factor of each trajectory's loss. In a loss of
            questions a weight of 2 counts as two copies, of a solution or of a step; the triton backend multiplies two
            of them in float32, so keep them between 1e-15 and 1e15. The default normalizer counts without weights.
        norm_weight: [D]; if given, rows first go through RMSNorm with this scale and `norm_eps`.
        norm_eps: finite Python number.
        normalizer: finite positive number or 0-dim tensor, for a mean that spans more than this call (micro-batches,
            ranks). Default: B, or S for a loss normalised by steps, and 1 if that is 0. It gets no gradient.
        steps_by_row: `pqm_kernels.steps_by_row(step_index, T)`. If it is computed in advance, the triton backend need
            not sort.
        backend: "eager", "triton" or "auto". Eager is plain PyTorch on any device, with derivatives of any order
            (except for the losses with rank in their names: second derivatives of logcumsumexp are NaN). On CUDA it
            reads the lengths of the trajectories back, which synchronises the device. Triton takes one launch forward
            and two backward. With it, nothing synchronises the device, loss and gradients repeat bit for bit, and
            torch.compile keeps the op in one graph. A backward with create_graph raises RuntimeError, because there is
            no second derivative. Auto is triton on CUDA if it supports the dtypes, else eager.

    Raises:
        ValueError: an unknown loss or backend; shapes, dtypes, devices or numbers that do not fit; a dtype that the
            backend does not support; a DTensor; on the CPU, values of step_index, labels or cu_steps that do not fit.
            On CUDA and under torch.compile the caller is responsible for the values in tensors: reading them
            would synchronise the device or break the graph.
    """
    others = {
        "cu_groups": cu_groups, "parent": parent, "outcomes": outcomes, "step_weights": step_weights,
        "trajectory_weights": trajectory_weights,
        **({} if siblings is None else {f"siblings.{name}": part for name, part in siblings._asdict().items()}),
    }  # fmt: skip
    check_inputs(hidden, step_index, labels, cu_steps, weight, bias, norm_weight, normalizer, steps_by_row, others)
    num_steps, num_trajectories = step_index.shape[0], cu_steps.shape[0] - 1
    check_steps(num_steps, labels, cu_steps, loss, compare, outcomes)
    check_questions(num_steps, num_trajectories, loss, compare, cu_groups, parent, siblings, outcomes)
    check_weights(num_steps, num_trajectories, (loss, compare), step_weights, trajectory_weights)
    options, norm_eps = loss_options(zeta, temperature, noise), finite_number("norm_eps", norm_eps)
    compare_weight = finite_number("compare_weight", compare_weight)
    step_weights = None if step_weights is None else step_weights.detach()
    trajectory_weights = None if trajectory_weights is None else trajectory_weights.detach()
    divisor = None  # the normalizer, if it is a number
    if isinstance(normalizer, Tensor):
        normalizer = normalizer.detach()
    elif normalizer is not None:
        divisor, normalizer = finite_number("normalizer", normalizer), None
        if divisor <= 0:
            raise ValueError(f"normalizer must be positive, found {divisor}")
    of_trajectory, of_question = split_units(loss, compare)
    siblings = _siblings_of(of_question, siblings, parent, cu_steps, cu_groups)
    if of_question is None or not LOSSES[of_question].uses_outcomes:
        outcomes = None
    dtypes = [tensor.dtype for tensor in (hidden, weight, bias, norm_weight) if tensor is not None]
    if pick_backend(backend, hidden.device, dtypes) == "eager":
        q = _scores(hidden, step_index, weight, bias, norm_weight, norm_eps)
        total = q.new_zeros(())
        if of_trajectory is not None:
            total = trajectory_losses(
                q, labels, cu_steps, of_trajectory, zeta, noise=noise, step_weights=step_weights,
                trajectory_weights=trajectory_weights,
            ).sum()  # fmt: skip
        if of_question is not None:
            assert cu_groups is not None  # checked
            compared = question_losses_of(
                q, labels, cu_steps, cu_groups, of_question, options, siblings, outcomes, step_weights,
                trajectory_weights,
            ).sum()  # fmt: skip
            total = total + (1.0 if of_trajectory is None else compare_weight) * compared
        if normalizer is not None:
            total = total / normalizer.to(total.dtype)  # a normalizer in float64 would make the loss float64
            return StepLoss(loss=total, q=q.detach())
        return StepLoss(loss=total / (divisor or default_normalizer(loss, num_steps, num_trajectories)), q=q.detach())
    order, first_step = steps_by_row or (None, None)
    constants = (
        step_index, labels, cu_steps, normalizer, order, first_step, None if of_question is None else cu_groups,
        *(siblings or (None, None, None)), outcomes, step_weights, trajectory_weights,
    )  # fmt: skip
    total, q, _ = op.call_step_loss(
        hidden,
        weight.contiguous(),
        bias,
        None if norm_weight is None else norm_weight.contiguous(),
        *(None if tensor is None else tensor.contiguous() for tensor in constants),
        loss,
        compare,
        [*options, compare_weight, norm_eps],
        divisor,
    )
    return StepLoss(loss=total, q=q)


def _siblings_of(
    loss: str | None, given: Siblings | None, parent: Tensor | None, cu_steps: Tensor, cu_groups: Tensor | None
) -> Siblings | None:
    """The steps sorted by parent, if a loss of questions compares siblings."""
    if loss is None or not LOSSES[loss].uses_siblings:
        return None
    assert cu_groups is not None  # checked
    if parent is None:
        return given
    if given is None:
        return sibling_index.siblings(parent, cu_steps, cu_groups)
    check_siblings(given, parent, cu_steps, cu_groups)
    return given


def _scores(
    hidden: Tensor,
    step_index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_eps: float,
) -> Tensor:
    """q [S] in plain PyTorch. The norm is a factor of each score, so that no [S, D] tensor is made for it."""
    x = hidden.index_select(0, step_index)
    if x.dtype != torch.float64:
        x = x.float()
    scale = weight.to(x.dtype) if norm_weight is None else weight.to(x.dtype) * norm_weight.to(x.dtype)
    q = (x * scale).sum(-1)  # not a matmul, which autocast or torch's precision of float32 products may round
    if norm_weight is not None:
        q = q * torch.rsqrt(x.square().mean(-1) + norm_eps)
    return q if bias is None else q + bias.to(x.dtype)
