"""The public op: from hidden states to the loss of every trajectory in them, through the value head."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pqm_kernels import row_index as by_row
from pqm_kernels.backends import pick_backend
from pqm_kernels.fused_step_loss import op as ops
from pqm_kernels.fused_step_loss.reference import INDICES, check_steps, default_normalizer, trajectory_losses
from pqm_kernels.row_index import StepsByRow


class StepLoss(NamedTuple):
    """What `step_loss` returns.

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
    """Scores q = hidden[step_index] . weight + bias and their loss, sum_b LOSSES[loss](b) / normalizer.

    Arithmetic is float32 for any half precision, also under autocast (float64 for float64). Of `hidden` only the
    step rows are read. The gradient goes to hidden, weight, bias and norm_weight, whichever require it.

    Args:
        hidden: [T, D], D >= 1, any strides; float32, float16, bfloat16 or, in the eager backend, float64.
        step_index: [S] int32 or int64, the row of `hidden` of each step; duplicates are allowed.
        labels: [S], 1 correct, 0 wrong, or between them for a loss with `soft_labels`.
        cu_steps: [B + 1] int32 or int64: trajectory b has the steps cu_steps[b]:cu_steps[b + 1], or none.
        weight: [D], any float dtype; float64, here and in bias or norm_weight, needs the eager backend.
        bias: [1], or None.
        loss: a key of `LOSSES`.
        zeta: margin between correct and wrong steps, for the losses that have one; a finite Python number.
        norm_weight: [D]; if given, rows go through RMSNorm with this scale and `norm_eps` first.
        norm_eps: finite Python number.
        normalizer: finite positive number or 0-dim tensor, where the mean spans more than this call (micro-batches,
            ranks); default B, or S for a step-normalised loss, or 1 where that is 0. It has no gradient.
        steps_by_row: `pqm_kernels.steps_by_row(step_index, T)`, if made ahead: it spares the triton backend a sort.
        backend: "eager" (plain PyTorch, any device, derivatives of any order; on CUDA it reads the lengths
            of the trajectories back, which synchronises the device), "triton" (one launch forward, two backward;
            nothing synchronises the device, loss and gradients repeat bit for bit, torch.compile takes it whole,
            and a backward with create_graph raises RuntimeError, as there is no second derivative), or "auto":
            triton on CUDA where it has the dtypes, else eager.

    Raises:
        ValueError: an unknown name; shapes, dtypes, devices or numbers that do not fit; a dtype that the backend
            does not have; a DTensor; on the CPU, values of step_index, labels or cu_steps that do not fit. On CUDA
            and under torch.compile the values in tensors are not looked at, for that would synchronise the
            device or break the graph: the caller vouches for them.
    """
    _check(hidden, step_index, labels, cu_steps, weight, bias, norm_weight, normalizer, steps_by_row)
    check_steps(step_index.shape[0], labels, cu_steps, loss)
    zeta, norm_eps = _finite("zeta", zeta), _finite("norm_eps", norm_eps)
    divisor = None  # the normalizer, if it is a number
    if isinstance(normalizer, Tensor):
        normalizer = normalizer.detach()
    elif normalizer is not None:
        divisor, normalizer = _finite("normalizer", normalizer), None
        if divisor <= 0:
            raise ValueError(f"normalizer must be positive, found {divisor}")
    dtypes = [tensor.dtype for tensor in (hidden, weight, bias, norm_weight) if tensor is not None]
    if pick_backend(backend, hidden.device, dtypes) == "eager":
        q = _scores(hidden, step_index, weight, bias, norm_weight, norm_eps)
        total = trajectory_losses(q, labels, cu_steps, loss, zeta).sum()
        if normalizer is not None:
            return StepLoss(total / normalizer.to(total.dtype), q.detach())  # two scalar tensors would promote the loss
        return StepLoss(total / (divisor or default_normalizer(loss, len(step_index), len(cu_steps) - 1)), q.detach())
    order, first_step = steps_by_row or (None, None)
    total, q, _ = ops.call_step_loss(
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
    return StepLoss(total, q)


def _scores(
    hidden: Tensor,
    step_index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_eps: float,
) -> Tensor:
    """q [S] in plain PyTorch. No matmul: autocast would round it to half precision."""
    x = hidden.index_select(0, step_index)
    if x.dtype != torch.float64:
        x = x.float()
    if norm_weight is not None:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm_eps) * norm_weight.to(x.dtype)
    q = (x * weight.to(x.dtype)).sum(-1)
    return q if bias is None else q + bias.to(x.dtype)


def _finite(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < math.inf:
        raise ValueError(f"{name} must be a finite Python number, found {value!r}")
    return float(value)  # triton would compile kernels anew for an int


def _check(
    hidden: Tensor,
    step_index: Tensor,
    labels: Tensor,
    cu_steps: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    normalizer: Tensor | float | None,
    steps_by_row: StepsByRow | None,
) -> None:
    order, first = steps_by_row or (None, None)
    device = hidden.device
    inputs = {
        "hidden": hidden, "step_index": step_index, "labels": labels, "cu_steps": cu_steps, "weight": weight,
        "bias": bias, "norm_weight": norm_weight, "steps_by_row.order": order, "steps_by_row.first": first,
        "normalizer": normalizer,
    }  # fmt: skip
    for name, tensor in inputs.items():
        if not isinstance(tensor, Tensor):
            continue
        if type(tensor).__name__ == "DTensor":
            instead = f"{name}.to_local(), or .full_tensor() if sharded"
            raise ValueError(f"{name} is a DTensor; pass a plain tensor: {instead}")
        if tensor.device != device:
            found = f"hidden on {device} and {name} on {tensor.device}"
            raise ValueError(f"all tensors must be on one device, found {found}")
    if hidden.dim() != 2 or not hidden.is_floating_point():
        raise _misfit("hidden", hidden, "floating point [T, D]")
    if step_index.dim() != 1 or step_index.dtype not in INDICES:
        raise _misfit("step_index", step_index, "int32 or int64 [S]")
    num_rows, width = hidden.shape
    if width == 0:
        raise ValueError(f"hidden must have at least one column, found {list(hidden.shape)}")
    if weight.shape != (width,) or not weight.is_floating_point():
        raise _misfit("weight", weight, f"floating point [{width}]")
    if bias is not None and (bias.shape != (1,) or not bias.is_floating_point()):
        raise _misfit("bias", bias, "floating point [1]")
    if norm_weight is not None and (norm_weight.shape != (width,) or not norm_weight.is_floating_point()):
        raise _misfit("norm_weight", norm_weight, f"floating point [{width}]")
    if order is not None and (order.shape != step_index.shape or order.dtype != torch.int32):
        raise _misfit("steps_by_row.order", order, f"int32 [{len(step_index)}]")
    if first is not None and (first.shape != (num_rows + 1,) or first.dtype != torch.int32):
        raise _misfit("steps_by_row.first", first, f"int32 [{num_rows + 1}]")
    if isinstance(normalizer, Tensor) and normalizer.dim() != 0:
        raise _misfit("normalizer", normalizer, "a number or a 0-dim tensor")
    if not hidden.is_cpu or torch.compiler.is_compiling():
        return
    if step_index.numel():
        low, high = (int(bound) for bound in step_index.aminmax())
        if low < 0 or high >= num_rows:
            raise ValueError(f"step_index must lie in 0..{num_rows - 1}, found {low}..{high}")
    if steps_by_row is not None:
        expected = by_row.steps_by_row(step_index, num_rows)
        if not all(torch.equal(part, right) for part, right in zip(steps_by_row, expected, strict=True)):
            raise ValueError("steps_by_row is not steps_by_row(step_index, len(hidden))")


def _misfit(name: str, tensor: Tensor, expected: str) -> ValueError:
    return ValueError(f"{name} must be {expected}, found {tensor.dtype} {list(tensor.shape)}")
