"""The Triton backend as PyTorch operators `pqm::step_loss` and `pqm::step_loss_backward`: what torch.compile, CUDA
graphs and autograd see of it. Their arguments are those of `pqm_kernels.step_loss`, checked there; those that have a
gradient come first.

Registered through `torch.library.Library`: the decorator `custom_op` costs three times the time of a call. The
dispatcher costs a third of one: who looks on sees the operators, and where nobody does, they are called without it.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pqm_kernels.fused_step_loss.reference import default_normalizer
from pqm_kernels.row_index import steps_by_row

_library = torch.library.Library("pqm", "DEF")
_library.define(
    "step_loss(Tensor hidden, Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor step_index, Tensor labels, "
    "Tensor cu_steps, Tensor? normalizer, Tensor? order, Tensor? first_step, str loss, float zeta, float norm_eps, "
    "float? divisor) -> (Tensor loss, Tensor q, Tensor work)"
)
_library.define(
    "step_loss_backward(Tensor upstream, Tensor work, Tensor hidden, Tensor weight, Tensor? bias, "
    "Tensor? norm_weight, Tensor step_index, Tensor? order, Tensor? first_step, bool needs_hidden, bool needs_head) "
    "-> (Tensor hidden, Tensor weight, Tensor bias, Tensor norm_weight)"
)
step_loss = torch.ops.pqm.step_loss.default
step_loss_backward = torch.ops.pqm.step_loss_backward.default


@cache
def _kernels() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward. They need triton, which not every platform has."""
    from pqm_kernels.fused_step_loss.backward import backward
    from pqm_kernels.fused_step_loss.forward import forward

    return forward, backward


def _step_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, step_index: Tensor,
    labels: Tensor, cu_steps: Tensor, normalizer: Tensor | None, order: Tensor | None, first_step: Tensor | None,
    loss: str, zeta: float, norm_eps: float, divisor: float | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The batch loss, the scores q [S], and `work`: what the backward needs (see `work_size`).

    The loss is divided by `normalizer` or by `divisor`, whichever is given, else by the default: that is done here,
    where torch.compile does not look, so that it need not compile anew for other numbers of steps and trajectories.
    """
    if normalizer is None and divisor is None:
        divisor = default_normalizer(loss, step_index.shape[0], cu_steps.shape[0] - 1)
    scale = 1.0 if divisor is None else 1.0 / divisor
    forward, _ = _kernels()
    return forward(
        hidden, weight, bias, norm_weight, step_index, labels, cu_steps, normalizer, loss, zeta, norm_eps, scale
    )


def _step_loss_backward(
    upstream: Tensor, work: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None,
    step_index: Tensor, order: Tensor | None, first_step: Tensor | None, needs_hidden: bool, needs_head: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of hidden, weight, bias and norm_weight; empty where not needed."""
    if order is None or first_step is None:
        order, first_step = steps_by_row(step_index, len(hidden))
    _, backward = _kernels()
    return backward(upstream, work, hidden, weight, bias, norm_weight, order, first_step, needs_hidden, needs_head)


def _fake_step_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, step_index: Tensor,
    labels: Tensor, cu_steps: Tensor, normalizer: Tensor | None, order: Tensor | None, first_step: Tensor | None,
    loss: str, *numbers: float | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    from pqm_kernels.fused_step_loss.forward import work_size

    num_steps = step_index.shape[0]
    size = work_size(num_steps, cu_steps.shape[0] - 1, norm_weight is not None, loss)
    return tuple(hidden.new_empty(shape, dtype=torch.float32) for shape in ((), num_steps, size))


def _fake_step_loss_backward(
    upstream: Tensor, work: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None,
    step_index: Tensor, order: Tensor | None, first_step: Tensor | None, needs_hidden: bool, needs_head: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    head = (weight, weight[:1] if bias is None else bias, weight[:0] if norm_weight is None else norm_weight)
    dhidden = hidden.new_empty(hidden.shape[0] if needs_hidden else 0, hidden.shape[1])
    return dhidden, *(part.new_empty(part.shape if needs_head else 0) for part in head)


def call_step_loss(hidden: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """The operator `step_loss`, with the same arguments and a gradient."""
    return step_loss(hidden, *others) if _is_watched(hidden) else _with_gradient(hidden, *others)


def _is_watched(tensor: Tensor) -> bool:
    """Whether an operator must be called as such: for a compiler, a mode such as that of fake tensors or a subclass."""
    return (
        torch.compiler.is_compiling()
        or type(tensor) not in (Tensor, torch.nn.Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _with_gradient(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, *constants: Any
) -> tuple[Tensor, ...]:
    return _StepLoss.apply(hidden, weight, bias, norm_weight, constants)  # autograd takes its time for each argument


class _StepLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None,
        constants: tuple[Any, ...],
    ) -> tuple[Tensor, ...]:  # fmt: skip
        if _is_watched(hidden):
            with torch._C._AutoDispatchBelowAutograd():
                total, q, work = step_loss(hidden, weight, bias, norm_weight, *constants)
        else:
            total, q, work = _step_loss(hidden, weight, bias, norm_weight, *constants)
        step_index, _, _, _, order, first_step = constants[:6]
        ctx.mark_non_differentiable(q, work)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(work, hidden, weight, bias, norm_weight, step_index, order, first_step)
        return total, q, work

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 5
        if torch.is_grad_enabled():  # under create_graph: these gradients would pass for constants
            raise RuntimeError("the triton backend has no second derivative (create_graph=True); use 'eager'")
        needs_hidden, needs_weight, needs_bias, needs_norm, _ = ctx.needs_input_grad
        differentiate: Callable[..., Any] = step_loss_backward if _is_watched(upstream) else _step_loss_backward
        dhidden, dweight, dbias, dnorm_weight = differentiate(
            upstream, *ctx.saved_tensors, needs_hidden, needs_weight or needs_bias or needs_norm
        )
        return (
            dhidden if needs_hidden else None, dweight if needs_weight else None, dbias if needs_bias else None,
            dnorm_weight if needs_norm else None, None,
        )  # fmt: skip


_library.impl("step_loss", _step_loss, "CompositeExplicitAutograd")
_library.impl("step_loss_backward", _step_loss_backward, "CompositeExplicitAutograd")
_library.impl("step_loss", _with_gradient, "Autograd")
torch.library.register_fake("pqm::step_loss", _fake_step_loss, lib=_library)
torch.library.register_fake("pqm::step_loss_backward", _fake_step_loss_backward, lib=_library)
