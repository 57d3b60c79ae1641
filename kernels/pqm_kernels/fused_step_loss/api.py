"""`step_loss`, the public op: from hidden states through the value head to the loss of a batch of trajectories."""

from typing import NamedTuple

import torch
from torch import Tensor

from pqm_kernels.backends import pick_backend
from pqm_kernels.fused_step_loss import op
from pqm_kernels.fused_step_loss.checks import check_inputs, check_steps, finite_number
from pqm_kernels.fused_step_loss.reference import trajectory_losses
from pqm_kernels.losses import default_normalizer
from pqm_kernels.row_index import StepsByRow


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
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-6,
    normalizer: Tensor | float | None = None,
    steps_by_row: StepsByRow | None = None,
    backend: str = "auto",
) -> StepLoss:
    """Scores q = hidden[step_index] . weight + bias, and their loss: the sum over all trajectories / normalizer.

    Arithmetic is float32 for float32 and half precision, also under autocast, and float64 for float64. Only the step
    rows of `hidden` are read. hidden, weight, bias and norm_weight get a gradient if they require one.

    Args:
        hidden: [T, D], D >= 1, any strides; float32, float16, bfloat16 or, in the eager backend, float64.
        step_index: [S] int32 or int64, the row of `hidden` of each step; duplicates are allowed.
        labels: [S] of any dtype: 1 correct, 0 wrong; a loss with `soft_labels` takes any number between them.
        cu_steps: [B + 1] int32 or int64: trajectory b has the steps cu_steps[b]:cu_steps[b + 1], possibly none.
        weight: [D], any float dtype; float64 in weight, bias or norm_weight needs the eager backend.
        bias: [1], or None.
        loss: a key of `LOSSES`; docs/method.md has the formulas and their sources.
        zeta: margin between correct and wrong steps, for the losses with `uses_zeta`; a finite Python number.
        norm_weight: [D]; if given, rows first go through RMSNorm with this scale and `norm_eps`.
        norm_eps: finite Python number.
        normalizer: finite positive number or 0-dim tensor, for a mean that spans more than this call (micro-batches,
            ranks). Default: B, or S for a loss normalised by steps, and 1 if that is 0. It gets no gradient.
        steps_by_row: `pqm_kernels.steps_by_row(step_index, T)`. If it is computed in advance, the triton backend need
            not sort.
        backend: "eager", "triton" or "auto". Eager is plain PyTorch on any device, with derivatives of any order. On
            CUDA it reads the lengths of the trajectories back, which synchronises the device. Triton takes one launch
            forward and two backward. With it, nothing synchronises the device, loss and gradients repeat bit for bit,
            and torch.compile keeps the op in one graph. A backward with create_graph raises RuntimeError, because there
            is no second derivative. Auto is triton on CUDA if it supports the dtypes, else eager.

    Raises:
        ValueError: an unknown loss or backend; shapes, dtypes, devices or numbers that do not fit; a dtype that the
            backend does not support; a DTensor; on the CPU, values of step_index, labels or cu_steps that do not fit.
            On CUDA and under torch.compile the caller is responsible for the values in tensors: reading them
            would synchronise the device or break the graph.
    """
    check_inputs(hidden, step_index, labels, cu_steps, weight, bias, norm_weight, normalizer, steps_by_row)
    check_steps(step_index.shape[0], labels, cu_steps, loss)
    zeta, norm_eps = finite_number("zeta", zeta), finite_number("norm_eps", norm_eps)
    divisor = None  # the normalizer, if it is a number
    if isinstance(normalizer, Tensor):
        normalizer = normalizer.detach()
    elif normalizer is not None:
        divisor, normalizer = finite_number("normalizer", normalizer), None
        if divisor <= 0:
            raise ValueError(f"normalizer must be positive, found {divisor}")
    dtypes = [tensor.dtype for tensor in (hidden, weight, bias, norm_weight) if tensor is not None]
    if pick_backend(backend, hidden.device, dtypes) == "eager":
        q = _scores(hidden, step_index, weight, bias, norm_weight, norm_eps)
        total = trajectory_losses(q, labels, cu_steps, loss, zeta).sum()
        if normalizer is not None:
            total = total / normalizer.to(total.dtype)  # a normalizer in float64 would make the loss float64
            return StepLoss(loss=total, q=q.detach())
        divisor = divisor or default_normalizer(loss, len(step_index), len(cu_steps) - 1)
        return StepLoss(loss=total / divisor, q=q.detach())
    order, first_step = steps_by_row or (None, None)
    total, q, _ = op.call_step_loss(
        hidden,
        weight.contiguous(),
        bias,
        None if norm_weight is None else norm_weight.contiguous(),
        step_index.contiguous(),
        labels.contiguous(),
        cu_steps.contiguous(),
        normalizer,
        None if order is None else order.contiguous(),
        None if first_step is None else first_step.contiguous(),
        loss,
        zeta,
        norm_eps,
        divisor,
    )
    return StepLoss(loss=total, q=q)


def _scores(
    hidden: Tensor,
    step_index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_eps: float,
) -> Tensor:
    """q [S] in plain PyTorch. Not a matmul, because autocast would round that to half precision."""
    x = hidden.index_select(0, step_index)
    if x.dtype != torch.float64:
        x = x.float()
    if norm_weight is not None:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm_eps) * norm_weight.to(x.dtype)
    q = (x * weight.to(x.dtype)).sum(-1)
    return q if bias is None else q + bias.to(x.dtype)
