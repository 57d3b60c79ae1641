"""Numbers that are none, found before they reach a file."""

from collections.abc import Iterable, Iterator

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity; None if all numbers are finite.

    Takes no memory beside the tensors, and waits for each device once.
    """
    names: dict[torch.device, list[str]] = {}
    bounds: dict[torch.device, list[torch.Tensor]] = {}
    for name, tensor in tensors:
        for part in _plain(tensor.detach()):
            if part.numel() and part.is_floating_point():
                names.setdefault(part.device, []).append(name)
                # both are NaN if any number is
                bounds.setdefault(part.device, []).append(torch.stack(part.aminmax()).float())
    for device, found in bounds.items():
        finite = torch.stack(found).isfinite().all(1).tolist()
        if bad := [name for name, good in zip(names[device], finite, strict=True) if not good]:
            return bad[0]
    return None


def state_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that a training changes: weights, and what the optimizer keeps of each."""
    yield from model.named_parameters()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                yield f"{names[id(parameter)]} ({key} of the optimizer)", value


def _plain(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A tensor of several, such as torchao's of 8 bits, by its parts."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain(getattr(tensor, name))
    else:
        yield tensor
