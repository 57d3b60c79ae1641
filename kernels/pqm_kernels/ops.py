"""The Triton backend as PyTorch operators `pqm::step_loss` and `pqm::step_loss_backward`: what torch.compile, CUDA
graphs and autograd see of it. Their arguments are those of `pqm_kernels.step_loss`, checked there.

Registered through `torch.library.Library`: the decorator `custom_op` costs three times the time of a call. The
dispatcher costs a third of one: who looks on sees the operators, and where nobody does, they are called without it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pqm_kernels.by_row import steps_by_row
from pqm_kernels.reference import default_normalizer

_library = torch.library.Library("pqm", "DEF")
_library.define(
    "step_loss(Tensor hidden, Tensor step_index, Tensor labels, Tensor cu_steps, Tensor weight, Tensor? bias, "
    "Tensor? norm_weight, Tensor? normalizer, Tensor? order, Tensor? first_step, str loss, float zeta, "
    "float norm_eps, float? divisor) -> (Tensor loss, Tensor work)"
)
_library.define(
    "step_loss_backward(Tensor upstream, Tensor work, Tensor hidden, Tensor step_index, Tensor? order, "
    "Tensor? first_step, Tensor weight, Tensor? bias, Tensor? norm_weight, bool needs_hidden, bool needs_head) "
    "-> (Tensor hidden, Tensor weight, Tensor bias, Tensor norm_weight)"
)
step_loss = torch.ops.pqm.step_loss.default
step_loss_backward = torch.ops.pqm.step_loss_backward.default


def _step_loss(
    hidden: Tensor, step_index: Tensor, labels: Tensor, cu_steps: Tensor, weight: Tensor, bias: Tensor | None,
    norm_weight: Tensor | None, normalizer: Tensor | None, order: Tensor | None, first_step: Tensor | None,
    loss: str, zeta: float, norm_eps: float, divisor: float | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The batch loss, and `work`: the scores [S] and, behind them, what the backward needs (see `work_size`).

    The loss is divided by `normalizer` or by `divisor`, whichever is given, else by the default: that is done here,
    where torch.compile does not look, so that it need not compile anew for other numbers of steps and trajectories.
    """
    from pqm_kernels.forward import forward  # needs triton, which not every platform has

    if normalizer is None and divisor is None:
        divisor = default_normalizer(loss, step_index.shape[0], cu_steps.shape[0] - 1)
    scale = 1.0 if divisor is None else 1.0 / divisor
    return forward(
        hidden, step_index, labels, cu_steps, weight, bias, norm_weight, normalizer, loss, zeta, norm_eps, scale
    )


def _step_loss_backward(
    upstream: Tensor, work: Tensor, hidden: Tensor, step_index: Tensor, order: Tensor | None,
    first_step: Tensor | None, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None,
    needs_hidden: bool, needs_head: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of hidden, weight, bias and norm_weight; empty where not needed."""
    from pqm_kernels.backward import backward

    if order is None or first_step is None:
        order, first_step = steps_by_row(step_index, len(hidden))
    return backward(upstream, work, hidden, order, first_step, weight, bias, norm_weight, needs_hidden, needs_head)


def _fake_step_loss(
    hidden: Tensor, step_index: Tensor, labels: Tensor, cu_steps: Tensor, weight: Tensor, bias: Tensor | None,
    norm_weight: Tensor | None, normalizer: Tensor | None, order: Tensor | None, first_step: Tensor | None,
    loss: str, *numbers: float | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    from pqm_kernels.forward import work_size

    size = work_size(step_index.shape[0], cu_steps.shape[0] - 1, norm_weight is not None, loss)
    return hidden.new_empty((), dtype=torch.float32), hidden.new_empty(size, dtype=torch.float32)


def _fake_step_loss_backward(upstream: Tensor, work: Tensor, hidden: Tensor, *others: Any) -> tuple[Tensor, ...]:
    weight, bias, norm_weight, needs_hidden, needs_head = others[-5:]
    head = (weight, weight[:1] if bias is None else bias, weight[:0] if norm_weight is None else norm_weight)
    dhidden = hidden.new_empty(hidden.shape if needs_hidden else 0)
    return dhidden, *(part.new_empty(part.shape if needs_head else 0) for part in head)


def call_step_loss(hidden: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """The operator `step_loss`, with the same arguments and a gradient."""
    return step_loss(hidden, *others) if _is_watched(hidden) else _StepLoss.apply(hidden, *others)


def _is_watched(tensor: Tensor) -> bool:
    """Whether an operator must be called as such: for a compiler, a mode such as that of fake tensors or a subclass."""
    return (
        torch.compiler.is_compiling()
        or type(tensor) not in (Tensor, torch.nn.Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
    )


class _StepLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        hidden, step_index, _, _, weight, bias, norm_weight, _, order, first_step = inputs[:10]
        if _is_watched(hidden):
            with torch._C._AutoDispatchBelowAutograd():
                total, work = step_loss(*inputs)
        else:
            total, work = _step_loss(*inputs)
        ctx.mark_non_differentiable(work)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(work, hidden, step_index, order, first_step, weight, bias, norm_weight)
        return total, work

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 14
        if torch.is_grad_enabled():  # under create_graph: these gradients would pass for constants
            raise RuntimeError("the triton backend has no second derivative (create_graph=True); use 'eager'")
        needs_hidden, *_, needs_weight, needs_bias, needs_norm = ctx.needs_input_grad[:7]
        differentiate: Callable[..., Any] = step_loss_backward if _is_watched(upstream) else _step_loss_backward
        dhidden, dweight, dbias, dnorm_weight = differentiate(
            upstream, *ctx.saved_tensors, needs_hidden, needs_weight or needs_bias or needs_norm
        )
        return (
            dhidden if needs_hidden else None, None, None, None, dweight if needs_weight else None,
            dbias if needs_bias else None, dnorm_weight if needs_norm else None, *[None] * 7,
        )  # fmt: skip


_library.impl("step_loss", _step_loss, "CompositeExplicitAutograd")
_library.impl("step_loss_backward", _step_loss_backward, "CompositeExplicitAutograd")
_library.impl("step_loss", _StepLoss.apply, "Autograd")
torch.library.register_fake("pqm::step_loss", _fake_step_loss, lib=_library)
torch.library.register_fake("pqm::step_loss_backward", _fake_step_loss_backward, lib=_library)
