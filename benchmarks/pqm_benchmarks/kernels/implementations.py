"""The implementations that are timed: the fused op, and three that it has to beat. Each is checked first."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from pqm_kernels import LOSSES, step_loss, steps_by_row
from pqm_kernels.fused_step_loss.reference import FUNCTIONS
from pqm_kernels.losses import LossOptions
from torch import Tensor

from pqm_benchmarks.kernels.inputs import Inputs
from pqm_benchmarks.shared.published import published
from pqm_fast.errors import PQMError

ZETA = 4.0
NORM_EPS = 1e-6


@dataclass(frozen=True)
class Call:
    """An implementation applied to one input."""

    loss_and_scores: Callable[[], tuple[Tensor, Tensor]]
    leaves: tuple[Tensor, ...]
    """The tensors whose gradients are computed: hidden, weight, bias and, with a norm, its weight."""

    def forward(self) -> tuple[Tensor, ...]:
        """The loss and the scores, without recording a graph for a backward pass."""
        with torch.no_grad():
            return self.loss_and_scores()

    def forward_backward(self) -> tuple[Tensor, ...]:
        """The loss, the scores and the gradient of each leaf."""
        loss, q = self.loss_and_scores()
        return loss.detach(), q.detach(), *torch.autograd.grad(loss, self.leaves)


def _leaves(inputs: Inputs, norm: bool) -> tuple[Tensor, ...]:
    return (inputs.hidden, inputs.weight, inputs.bias, inputs.norm_weight)[: 4 if norm else 3]


def _step_loss(inputs: Inputs, loss: str, norm: bool, **options) -> Call:
    def run() -> tuple[Tensor, Tensor]:
        return step_loss(
            inputs.hidden, inputs.step_index, inputs.labels, inputs.cu_steps, inputs.weight, inputs.bias,
            loss=loss, zeta=ZETA, norm_weight=inputs.norm_weight if norm else None, norm_eps=NORM_EPS,
            cu_groups=inputs.cu_groups, parent=inputs.parent, **options,
        )  # fmt: skip

    return Call(run, _leaves(inputs, norm))


def fused(inputs: Inputs, loss: str, norm: bool) -> Call:
    """The op with what the packer makes in advance: the index for the backward pass, and the steps sorted by parent."""
    index = steps_by_row(inputs.step_index, len(inputs.hidden))
    return _step_loss(inputs, loss, norm, backend="triton", steps_by_row=index, siblings=inputs.siblings)


def fused_sorting(inputs: Inputs, loss: str, norm: bool) -> Call:
    """The op without that: it sorts."""
    return _step_loss(inputs, loss, norm, backend="triton")


def published_code(inputs: Inputs, loss: str, norm: bool) -> Call:
    """The computation in `shared/published.py`; the head has the dtype of hidden."""
    hidden, *head = _leaves(inputs, norm)
    head = [parameter.detach().to(hidden.dtype).requires_grad_() for parameter in head]
    weight, bias = head[:2]
    norm_weight = head[2] if norm else None

    def run() -> tuple[Tensor, Tensor]:
        index, labels = inputs.padded_index, inputs.padded_labels
        return published(hidden, index, labels, weight, bias, norm_weight, ZETA, NORM_EPS)

    return Call(run, (hidden, *head))


def _gather_first(
    hidden: Tensor, step_index: Tensor, slots: Tensor, padded_labels: Tensor, weight: Tensor, bias: Tensor,
    norm_weight: Tensor | None, loss: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows = hidden.index_select(0, step_index).float()
    if norm_weight is not None:
        rows = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + NORM_EPS) * norm_weight
    q = F.linear(rows, weight[None], bias).squeeze(-1)
    padded = q.new_zeros(padded_labels.numel()).index_copy(0, slots, q).view(padded_labels.shape)
    total = FUNCTIONS[loss](padded, padded_labels, padded_labels >= 0, LossOptions(ZETA)).sum()
    return total / len(q if LOSSES[loss].normalised_by == "steps" else padded), q


def eager(inputs: Inputs, loss: str, norm: bool) -> Call:
    """Carefully written PyTorch: step rows are gathered first, scores are float32, and nothing synchronises. For a loss
    of questions it is the op's own eager backend, which reads sizes back."""
    if LOSSES[loss].unit == "question":
        return _step_loss(inputs, loss, norm, backend="eager")
    return _plain(_gather_first, inputs, loss, norm)


def compiled(inputs: Inputs, loss: str, norm: bool) -> Call:
    """`torch.compile` of `eager`, specialised on these shapes."""
    return _plain(_compiled_gather_first(), inputs, loss, norm)


@cache
def _compiled_gather_first() -> Callable:
    return torch.compile(_gather_first, fullgraph=True, dynamic=False)


def _plain(function: Callable, inputs: Inputs, loss: str, norm: bool) -> Call:
    def run() -> tuple[Tensor, Tensor]:
        return function(
            inputs.hidden, inputs.step_index, inputs.slots, inputs.padded_labels, inputs.weight, inputs.bias,
            inputs.norm_weight if norm else None, loss,
        )  # fmt: skip

    return Call(run, _leaves(inputs, norm))


IMPLEMENTATIONS: dict[str, Callable[[Inputs, str, bool], Call]] = {
    "published": published_code,
    "eager": eager,
    "compiled": compiled,
    "fused": fused,
    "fused-sorting": fused_sorting,
}


def why_not(name: str, loss: str, device: torch.device) -> str | None:
    """Why an implementation cannot run here; None if it can."""
    if name == "published" and loss != "rank":
        return f"the published computation exists for the loss rank only, not for {loss}"
    if name == "compiled" and LOSSES[loss].unit == "question":
        return f"{loss} in PyTorch has shapes that depend on values, which would be compiled again for every batch"
    if name.startswith("fused") and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton runs on the CPU only with TRITON_INTERPRET=1 in the environment"
    return None


def check(name: str, call: Call, inputs: Inputs, loss: str, norm: bool) -> None:
    """Compares loss and gradient of hidden with those of `step_loss(backend="eager")`.

    Raises:
        PQMError: they differ by more than rounding.
    """
    expected = _step_loss(inputs, loss, norm, backend="eager").forward_backward()
    outputs = call.forward_backward()
    without_graph = call.forward()
    for_loss, for_gradient = tolerances(name, inputs.hidden.dtype)
    errors = (
        ("loss", relative_error(outputs[0], expected[0]), for_loss),
        ("loss without a backward", relative_error(without_graph[0], expected[0]), for_loss),
        ("gradient of hidden", relative_error(outputs[2], expected[2]), for_gradient),
    )
    for output, error, tolerance in errors:
        if not error <= tolerance:  # NaN is wrong too
            raise PQMError(
                f"{name}, loss {loss}, {list(inputs.hidden.shape)} {inputs.hidden.dtype}, "
                f"{'with' if norm else 'without'} norm: the {output} is off by {error:.2g} of its size, more than "
                f"{tolerance:.2g}; it is not timed until that is fixed"
            )


def relative_error(output: Tensor, expected: Tensor) -> float:
    """|output - expected| / |expected|, Euclidean."""
    difference = torch.linalg.vector_norm(output.float() - expected.float())
    return float(difference / torch.linalg.vector_norm(expected.float()))


def tolerances(name: str, dtype: torch.dtype) -> tuple[float, float]:
    """(relative error allowed in the loss, relative error allowed in the gradient of hidden)."""
    unit = torch.finfo(dtype).eps / 2
    if name == "published":
        # 1e-5 in denominators above 1 moves no term by more than 1e-5, with losses of order 1. In half precision
        # scores are rounded once, which the mean evens out. Gradients are rounded up to four times: in the score, the
        # norm, the product and the sum.
        return 2e-5 + unit, 2e-5 + 4 * unit
    # float32 throughout, so that few elements of the gradient round to the other side in the dtype of hidden
    return 1e-5, 1e-5 + unit / 4
