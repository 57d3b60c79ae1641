"""The Triton backend as PyTorch operators `pqm::step_loss` and `pqm::step_loss_backward`.

torch.compile, CUDA graphs and autograd see the backend as these operators. Their arguments are those of
`pqm_kernels.step_loss`, which has checked them; those that get a gradient come first.

They are registered through `torch.library.Library`, because the decorator `custom_op` makes a call take three times as
long. The dispatcher alone takes a third of a call, so it is used only when something has to see the operators (a
compiler, a dispatch mode, a tensor subclass); otherwise their functions are called directly. Calls pass arguments by
position, because a call takes more time on the host than its kernels take on the device.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pqm_kernels.fused_step_loss.work_buffer import work_size
from pqm_kernels.losses import default_normalizer
from pqm_kernels.row_index import steps_by_row

_library = torch.library.Library("pqm", "DEF")
_library.define(
    "step_loss(Tensor hidden, Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor step_index, Tensor labels, "
    "Tensor cu_steps, Tensor? normalizer, Tensor? order, Tensor? first_step, Tensor? cu_groups, Tensor? sibling_order, "
    "Tensor? sibling_first, Tensor? sibling_end, Tensor? outcomes, Tensor? step_weights, Tensor? trajectory_weights, "
    "str loss, str? compare, float[] numbers, float? divisor) -> (Tensor loss, Tensor q, Tensor work)"
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
    """The launchers of the forward and the backward, imported here because not every platform has triton."""
    from pqm_kernels.fused_step_loss.backward import backward
    from pqm_kernels.fused_step_loss.forward import forward

    return forward, backward


def _step_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, step_index: Tensor,
    labels: Tensor, cu_steps: Tensor, normalizer: Tensor | None, order: Tensor | None, first_step: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Returns the batch loss, the scores q [S] and `work`, which the backward needs (see `work_size`).

    The loss is divided by `normalizer` or `divisor`, whichever is given, else by the default normalizer. The default is
    computed here, where torch.compile does not trace, so that it need not recompile for other numbers of steps and
    trajectories.
    """
    *questions, loss, compare, numbers, divisor = rest
    if normalizer is None and divisor is None:
        divisor = default_normalizer(loss, step_index.shape[0], cu_steps.shape[0] - 1)
    scale = 1.0 if divisor is None else 1.0 / divisor
    forward, _ = _kernels()
    return forward(
        hidden, weight, bias, norm_weight, step_index, labels, cu_steps, normalizer, questions, loss, compare, numbers,
        scale,
    )  # fmt: skip


def _step_loss_backward(
    upstream: Tensor, work: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None,
    step_index: Tensor, order: Tensor | None, first_step: Tensor | None, needs_hidden: bool, needs_head: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Returns the gradients of hidden, weight, bias and norm_weight, empty if not needed."""
    if order is None or first_step is None:
        order, first_step = steps_by_row(step_index, len(hidden))
    _, backward = _kernels()
    return backward(upstream, work, hidden, weight, bias, norm_weight, order, first_step, needs_hidden, needs_head)


def _fake_step_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, step_index: Tensor,
    labels: Tensor, cu_steps: Tensor, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    *_, loss, compare, _numbers, _divisor = rest
    num_steps = step_index.shape[0]
    size = work_size(num_steps, cu_steps.shape[0] - 1, norm_weight is not None, loss, compare)
    return tuple(hidden.new_empty(shape, dtype=torch.float32) for shape in ((), num_steps, size))


def _fake_step_loss_backward(
    upstream: Tensor, work: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None,
    step_index: Tensor, order: Tensor | None, first_step: Tensor | None, needs_hidden: bool, needs_head: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    head = (weight, weight[:1] if bias is None else bias, weight[:0] if norm_weight is None else norm_weight)
    dhidden = hidden.new_empty(hidden.shape[0] if needs_hidden else 0, hidden.shape[1])
    return dhidden, *(part.new_empty(part.shape if needs_head else 0) for part in head)


def call_step_loss(hidden: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """Calls the operator `step_loss`, with a gradient; the arguments are those of the operator."""
    return step_loss(hidden, *others) if _is_watched(hidden) else _with_gradient(hidden, *others)


def _is_watched(tensor: Tensor) -> bool:
    """Whether the operator must be called through the dispatcher: under a compiler or a dispatch mode such as that of
    fake tensors, or for a tensor subclass."""
    return (
        torch.compiler.is_compiling()
        or type(tensor) not in (Tensor, torch.nn.Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _with_gradient(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, *constants: Any
) -> tuple[Tensor, ...]:
    return _StepLoss.apply(hidden, weight, bias, norm_weight, constants)  # one tuple: each argument costs autograd time


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
        step_index, _labels, _cu_steps, _normalizer, order, first_step, *_ = constants
        ctx.mark_non_differentiable(q, work)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(work, hidden, weight, bias, norm_weight, step_index, order, first_step)
        return total, q, work

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return None, None, None, None, None  # for each argument of forward
        if torch.is_grad_enabled():  # under create_graph; autograd would take these gradients for constants
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
