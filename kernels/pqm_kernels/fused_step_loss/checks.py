"""Checks of the arguments of the op. Each raises ValueError, which says what was expected and what was found.

Values in tensors are checked on the CPU only, and not under torch.compile. Reading them would synchronise any other
device, and under torch.compile it would break the graph.
"""

import math

import torch
from torch import Tensor

from pqm_kernels.losses import LOSSES
from pqm_kernels.row_index import StepsByRow, steps_by_row

INDEX_DTYPES = (torch.int32, torch.int64)


def check_inputs(
    hidden: Tensor,
    step_index: Tensor,
    labels: Tensor,
    cu_steps: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    normalizer: Tensor | float | None,
    by_row: StepsByRow | None,
) -> None:
    """Checks devices, shapes, dtypes and indices of all inputs of `step_loss`, except what `check_steps` checks."""
    order, first = by_row or (None, None)
    _check_devices(
        hidden.device,
        {
            "hidden": hidden, "step_index": step_index, "labels": labels, "cu_steps": cu_steps, "weight": weight,
            "bias": bias, "norm_weight": norm_weight, "steps_by_row.order": order, "steps_by_row.first": first,
            "normalizer": normalizer,
        },
    )  # fmt: skip
    if hidden.dim() != 2 or not hidden.is_floating_point():
        raise _misfit("hidden", hidden, "floating point [T, D]")
    if step_index.dim() != 1 or step_index.dtype not in INDEX_DTYPES:
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
    if hidden.is_cpu and not torch.compiler.is_compiling():
        _check_indices(step_index, num_rows, by_row)


def check_steps(num_steps: int, labels: Tensor, cu_steps: Tensor, loss: str) -> None:
    """Checks that the loss is known, and that labels and cu_steps describe `num_steps` steps."""
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}; known: {', '.join(LOSSES)}")
    if labels.shape != (num_steps,):
        raise ValueError(f"labels must be [{num_steps}], one per step, found {list(labels.shape)}")
    if cu_steps.dim() != 1 or cu_steps.numel() == 0 or cu_steps.dtype not in INDEX_DTYPES:
        raise _misfit("cu_steps", cu_steps, "int32 or int64 [B + 1]")
    if torch.compiler.is_compiling():
        return
    if cu_steps.is_cpu:
        wrong = torch.cat([cu_steps[:1] != 0, cu_steps[1:] < cu_steps[:-1]]) | (cu_steps > num_steps)
        wrong[-1] |= cu_steps[-1] != num_steps
        if wrong.any():
            at = int(wrong.nonzero()[0])
            entry = f"cu_steps[{at}] = {int(cu_steps[at])}" + (f" after {int(cu_steps[at - 1])}" if at else "")
            raise ValueError(f"cu_steps must rise from 0 to {num_steps}, the number of steps, found {entry}")
    if labels.is_cpu:
        if LOSSES[loss].soft_labels:
            if not ((labels >= 0) & (labels <= 1)).all():
                raise ValueError(f"labels for {loss!r} must lie in [0, 1]")
        elif not ((labels == 0) | (labels == 1)).all():
            soft = ", ".join(name for name in LOSSES if LOSSES[name].soft_labels)
            raise ValueError(f"labels for {loss!r} must be 0 or 1; losses that take soft labels: {soft}")


def finite_number(name: str, value: object) -> float:
    """`value` as a float. For an int, triton would compile the kernels again."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < math.inf:
        raise ValueError(f"{name} must be a finite Python number, found {value!r}")
    return float(value)


def _check_devices(device: torch.device, inputs: dict[str, Tensor | float | None]) -> None:
    for name, tensor in inputs.items():
        if not isinstance(tensor, Tensor):
            continue
        if type(tensor).__name__ == "DTensor":
            instead = f"{name}.to_local(), or .full_tensor() if sharded"
            raise ValueError(f"{name} is a DTensor; pass a plain tensor: {instead}")
        if tensor.device != device:
            places = f"hidden on {device} and {name} on {tensor.device}"
            raise ValueError(f"all tensors must be on one device, found {places}")


def _check_indices(step_index: Tensor, num_rows: int, by_row: StepsByRow | None) -> None:
    if step_index.numel():
        low, high = (int(bound) for bound in step_index.aminmax())
        if low < 0 or high >= num_rows:
            raise ValueError(f"step_index must lie in 0..{num_rows - 1}, found {low}..{high}")
    if by_row is not None:
        expected = steps_by_row(step_index, num_rows)
        if not all(torch.equal(part, right) for part, right in zip(by_row, expected, strict=True)):
            raise ValueError("steps_by_row is not steps_by_row(step_index, len(hidden))")


def _misfit(name: str, tensor: Tensor, expected: str) -> ValueError:
    return ValueError(f"{name} must be {expected}, found {tensor.dtype} {list(tensor.shape)}")
