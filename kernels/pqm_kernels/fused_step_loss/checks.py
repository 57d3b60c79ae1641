"""Checks of the arguments of the op. Each raises ValueError, which says what was expected and what was found.

Values in tensors are checked on the CPU only, and not under torch.compile. Reading them would synchronise any other
device, and under torch.compile it would break the graph.
"""

import math

import torch
from torch import Tensor

from pqm_kernels.losses import LOSSES, LossOptions
from pqm_kernels.row_index import StepsByRow, steps_by_row
from pqm_kernels.sibling_index import Siblings, siblings

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
    others: dict[str, Tensor | None],
) -> None:
    """Checks devices, shapes, dtypes and indices of all inputs of `step_loss`, except what the functions below check.

    Of `others`, only the devices are checked.
    """
    order, first = by_row or (None, None)
    _check_devices(
        hidden.device,
        {
            "hidden": hidden, "step_index": step_index, "labels": labels, "cu_steps": cu_steps, "weight": weight,
            "bias": bias, "norm_weight": norm_weight, "steps_by_row.order": order, "steps_by_row.first": first,
            "normalizer": normalizer, **others,
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


def check_steps(
    num_steps: int,
    labels: Tensor,
    cu_steps: Tensor,
    loss: str,
    compare: str | None = None,
    outcomes: Tensor | None = None,
) -> None:
    """Checks that the losses are known, and that labels and cu_steps describe `num_steps` steps."""
    for name in (loss, compare):
        if name is not None and name not in LOSSES:
            raise ValueError(f"unknown loss {name!r}; known: {', '.join(LOSSES)}")
    if labels.shape != (num_steps,):
        raise ValueError(f"labels must be [{num_steps}], one per step, found {list(labels.shape)}")
    _check_ends("cu_steps", cu_steps, "B", num_steps, "steps")
    if labels.is_cpu and not torch.compiler.is_compiling():
        _check_labels(labels, [name for name in (loss, compare) if name is not None], outcomes is not None)


def _check_labels(labels: Tensor, losses: list[str], has_outcomes: bool) -> None:
    """Checks the values of labels for the losses that read them."""
    readers = [name for name in losses if not (LOSSES[name].uses_outcomes and has_outcomes)]
    hard = next((name for name in readers if not LOSSES[name].soft_labels), None)
    if hard is not None and not ((labels == 0) | (labels == 1)).all():
        soft = ", ".join(name for name in LOSSES if LOSSES[name].soft_labels)
        raise ValueError(f"labels for {hard!r} must be 0 or 1; losses that take soft labels: {soft}")
    if readers and not ((labels >= 0) & (labels <= 1)).all():
        raise ValueError(f"labels for {readers[0]!r} must lie in [0, 1]")


def check_questions(
    num_steps: int,
    num_trajectories: int,
    loss: str,
    compare: str | None,
    cu_groups: Tensor | None,
    parent: Tensor | None,
    by_parent: Siblings | None,
    outcomes: Tensor | None,
) -> None:
    """Checks that the losses fit together, and that what describes the questions fits the steps."""
    if compare is not None and (LOSSES[loss].unit != "trajectory" or LOSSES[compare].unit != "question"):
        of_questions = ", ".join(name for name in LOSSES if LOSSES[name].unit == "question")
        raise ValueError(
            f"compare adds a loss of questions ({of_questions}) to one of trajectories, found {compare!r} and {loss!r}"
        )
    of_question = next((name for name in (loss, compare) if name and LOSSES[name].unit == "question"), None)
    if of_question and cu_groups is None:
        raise ValueError(f"{of_question!r} compares the solutions of a question: pass cu_groups")
    if cu_groups is not None:
        _check_ends("cu_groups", cu_groups, "Q", num_trajectories, "trajectories")
    if of_question and LOSSES[of_question].uses_siblings and parent is None and by_parent is None:
        raise ValueError(f"{of_question!r} compares steps that continue the same prefix: pass parent")
    if parent is not None and (parent.shape != (num_steps,) or parent.dtype not in INDEX_DTYPES):
        raise _misfit("parent", parent, f"int32 or int64 [{num_steps}]")
    for name, tensor in () if by_parent is None else by_parent._asdict().items():
        if tensor.shape != (num_steps,) or tensor.dtype != torch.int32:
            raise _misfit(f"siblings.{name}", tensor, f"int32 [{num_steps}]")
        if tensor.is_cpu and not torch.compiler.is_compiling() and not ((tensor >= 0) & (tensor <= num_steps)).all():
            raise ValueError(f"siblings.{name} must lie in 0..{num_steps}")
    if outcomes is not None and (outcomes.shape != (num_trajectories,) or not outcomes.is_floating_point()):
        raise _misfit("outcomes", outcomes, f"floating point [{num_trajectories}]")


def check_siblings(by_parent: Siblings, parent: Tensor, cu_steps: Tensor, cu_groups: Tensor) -> None:
    """Checks, on the CPU, that `by_parent` was made from the other arguments."""
    if parent.is_cpu and not torch.compiler.is_compiling():
        expected = siblings(parent, cu_steps, cu_groups)
        if not all(torch.equal(part, right) for part, right in zip(by_parent, expected, strict=True)):
            raise ValueError("siblings is not siblings(parent, cu_steps, cu_groups)")


def check_weights(
    num_steps: int,
    num_trajectories: int,
    losses: str | tuple[str | None, ...],
    step_weights: Tensor | None,
    trajectory_weights: Tensor | None,
) -> None:
    """Checks the weights, and that each loss takes weights of steps if there are some."""
    weights = (("step_weights", step_weights, num_steps), ("trajectory_weights", trajectory_weights, num_trajectories))
    for name, tensor, size in weights:
        if tensor is None:
            continue
        if tensor.shape != (size,) or not tensor.is_floating_point():
            raise _misfit(name, tensor, f"floating point [{size}]")
        if tensor.is_cpu and not torch.compiler.is_compiling() and not ((tensor >= 0) & (tensor < math.inf)).all():
            raise ValueError(f"{name} must be finite and at least 0")
    for loss in (losses,) if isinstance(losses, str) else losses:
        if step_weights is not None and loss is not None and not LOSSES[loss].weighs_steps:
            taking = ", ".join(name for name in LOSSES if LOSSES[name].weighs_steps)
            raise ValueError(f"{loss!r} takes no step_weights; losses that do: {taking}")


def _check_ends(name: str, ends: Tensor, letter: str, last: int, counted: str) -> None:
    """Checks that `ends` rises from 0 to `last`, the number of what it counts; values on the CPU only."""
    if ends.dim() != 1 or ends.numel() == 0 or ends.dtype not in INDEX_DTYPES:
        raise _misfit(name, ends, f"int32 or int64 [{letter} + 1]")
    if not ends.is_cpu or torch.compiler.is_compiling():
        return
    wrong = torch.cat([ends[:1] != 0, ends[1:] < ends[:-1]]) | (ends > last)
    wrong[-1] |= ends[-1] != last
    if wrong.any():
        at = int(wrong.nonzero()[0])
        entry = f"{name}[{at}] = {int(ends[at])}" + (f" after {int(ends[at - 1])}" if at else "")
        raise ValueError(f"{name} must rise from 0 to {last}, the number of {counted}, found {entry}")


def finite_number(name: str, value: object) -> float:
    """`value` as a float. For an int, triton would compile the kernels again."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < math.inf:
        raise ValueError(f"{name} must be a finite Python number, found {value!r}")
    return float(value)


def loss_options(zeta: float, temperature: float, noise: tuple[float, float]) -> LossOptions:
    """The numbers in the formulas, checked. Raises ValueError for one that no formula takes."""
    before, after = (finite_number("noise", rate) for rate in noise)
    if not (0 <= before <= 1 and 0 <= after <= 1):
        raise ValueError(f"noise must be two numbers from 0 to 1, found {noise}")
    temperature = finite_number("temperature", temperature)
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, found {temperature}")
    return LossOptions(finite_number("zeta", zeta), temperature, before, after)


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
