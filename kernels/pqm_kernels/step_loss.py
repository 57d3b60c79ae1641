"""The public op: from hidden states to the loss of every trajectory in them, through the value head."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pqm_kernels.reference import LOSSES, check_steps, trajectory_losses

TRITON_LOSSES = ("rank",)
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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
    backend: str = "auto",
) -> StepLoss:
    """Scores q = hidden[step_index] . weight + bias and their loss, sum_b LOSSES[loss](b) / normalizer.

    Arithmetic is float32 for any half precision (float64 for float64). Of `hidden` only the step rows are
    read. The gradient goes to hidden, weight, bias and norm_weight, whichever require it.

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
            ranks); default B, or S for a step-normalised loss, or 1 where that is 0.
        backend: "eager" (plain PyTorch, every loss, derivatives of any order; on CUDA it reads the lengths
            of the trajectories back, which synchronises the device), "triton" (the loss `rank`; nothing
            synchronises the device, loss and gradients repeat bit for bit, and a backward with create_graph
            raises RuntimeError, as there is no second derivative), or "auto": triton on CUDA where it has the
            loss and the dtypes, else eager.

    Raises:
        ValueError: an unknown name; shapes, dtypes, devices or numbers that do not fit; a loss or dtype that the
            backend does not have; on the CPU, values of step_index, labels or cu_steps that do not fit. On
            CUDA the values in tensors are not looked at, for that would synchronise the device: the caller
            vouches for them.
    """
    _check(hidden, step_index, labels, cu_steps, weight, bias, norm_weight)
    zeta, norm_eps = _finite("zeta", zeta), _finite("norm_eps", norm_eps)
    if isinstance(normalizer, Tensor):
        if normalizer.dim() != 0:
            raise ValueError(f"normalizer must be a number or a 0-dim tensor, found {list(normalizer.shape)}")
    elif normalizer is not None and _finite("normalizer", normalizer) <= 0:
        raise ValueError(f"normalizer must be positive, found {normalizer}")
    dtypes = [tensor.dtype for tensor in (hidden, weight, bias, norm_weight) if tensor is not None]
    if backend == "auto":
        backend = _best_backend(hidden.device, dtypes, loss)
    if backend == "triton":
        check_steps(len(step_index), labels, cu_steps, loss)
        if loss not in TRITON_LOSSES:
            raise ValueError(f"the triton backend has the losses {TRITON_LOSSES}, not {loss!r}; use 'eager'")
        for dtype in dtypes:
            if dtype not in TRITON_DTYPES:
                raise ValueError(f"the triton backend does not take {dtype}; use 'eager'")
        total, q = _TritonRank.apply(
            hidden,
            step_index.contiguous(),
            labels.contiguous(),
            cu_steps.contiguous(),
            weight.contiguous(),
            bias,
            None if norm_weight is None else norm_weight.contiguous(),
            zeta,
            norm_eps,
        )
    elif backend == "eager":
        q = _scores(hidden, step_index, weight, bias, norm_weight, norm_eps)
        total = trajectory_losses(q, labels, cu_steps, loss, zeta).sum()
    else:
        raise ValueError(f"unknown backend {backend!r}; known: auto, eager, triton")
    if normalizer is None:
        normalizer = max(len(step_index) if LOSSES[loss].normalised_by == "steps" else len(cu_steps) - 1, 1)
    elif isinstance(normalizer, Tensor):
        normalizer = normalizer.to(total.dtype)  # two scalar tensors would promote the loss
    return StepLoss(total / normalizer, q.detach())


def _best_backend(device: torch.device, dtypes: list[torch.dtype], loss: str) -> str:
    """What "auto" stands for."""
    possible = device.type == "cuda" and loss in TRITON_LOSSES and set(dtypes) <= set(TRITON_DTYPES)
    return "triton" if possible else "eager"


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


class _TritonRank(torch.autograd.Function):
    """Sum of the `rank` losses and the scores. The gradient by the scores comes with the forward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, step_index: Tensor, labels: Tensor, cu_steps: Tensor, weight: Tensor,
        bias: Tensor | None, norm_weight: Tensor | None, zeta: float, norm_eps: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        from pqm_kernels import ranking  # needs triton, which not every platform has

        losses, q, dq, rstd = ranking.forward(
            hidden, step_index, labels, cu_steps, weight, bias, norm_weight, zeta, norm_eps
        )
        ctx.save_for_backward(hidden, step_index, weight, bias, norm_weight, q, dq, rstd)
        ctx.mark_non_differentiable(q)
        return losses.sum(), q

    @staticmethod
    def backward(ctx: Any, dtotal: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # under create_graph: the kernel's gradients would pass for constants
            raise RuntimeError("the triton backend has no second derivative (create_graph=True); use 'eager'")
        from pqm_kernels import ranking

        hidden, step_index, weight, bias, norm_weight, q, dq, rstd = ctx.saved_tensors
        needs_hidden, _, _, _, needs_weight, needs_bias, needs_norm, _, _ = ctx.needs_input_grad
        dq = dq * dtotal
        dhidden = dweight = dnorm = None
        if needs_hidden or needs_weight or needs_norm:
            dhidden, dhead = ranking.backward(dq, hidden, step_index, q, rstd, weight, bias, norm_weight, needs_hidden)
            # q = sum_d (hidden_d / rms) norm_weight_d weight_d + bias: one sum serves both factors.
            if needs_weight:
                dweight = (dhead if norm_weight is None else dhead * norm_weight).to(weight.dtype)
            if needs_norm:
                dnorm = (dhead * weight).to(norm_weight.dtype)
        dbias = dq.sum(0, keepdim=True).to(bias.dtype) if needs_bias else None
        return dhidden, None, None, None, dweight, dbias, dnorm, None, None


def _finite(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
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
) -> None:
    if hidden.dim() != 2 or not hidden.is_floating_point():
        raise ValueError(f"hidden must be floating point [T, D], found {hidden.dtype} {list(hidden.shape)}")
    if step_index.dim() != 1 or step_index.dtype not in (torch.int32, torch.int64):
        found = f"{step_index.dtype} {list(step_index.shape)}"
        raise ValueError(f"step_index must be int32 or int64 [S], found {found}")
    num_rows, width = hidden.shape
    if width == 0:
        raise ValueError(f"hidden must have at least one column, found {list(hidden.shape)}")
    for name, tensor, size in (
        ("weight", weight, width),
        ("bias", bias, 1),
        ("norm_weight", norm_weight, width),
    ):
        if tensor is not None and (tensor.shape != (size,) or not tensor.is_floating_point()):
            found = f"{tensor.dtype} {list(tensor.shape)}"
            raise ValueError(f"{name} must be floating point [{size}], found {found}")
    for tensor in (step_index, labels, cu_steps, weight, bias, norm_weight):
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"all tensors must be on one device, found {hidden.device} and {tensor.device}")
    if step_index.device.type == "cpu" and len(step_index):
        low, high = (int(bound) for bound in step_index.aminmax())
        if low < 0 or high >= num_rows:
            raise ValueError(f"step_index must lie in 0..{num_rows - 1}, found {low}..{high}")
