"""Looks for NaN and infinity before weights reach a file."""

from collections.abc import Iterable, Iterator

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def first_not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity; None if all numbers are finite.

    Takes hardly any memory besides the tensors, and waits for each device once.
    """
    names: dict[torch.device, list[str]] = {}
    bounds: dict[torch.device, list[torch.Tensor]] = {}
    for name, tensor in tensors:
        for part in _plain_tensors(tensor.detach()):
            if part.numel() and part.is_floating_point():
                names.setdefault(part.device, []).append(name)
                # both bounds are NaN if any number is
                bounds.setdefault(part.device, []).append(torch.stack(part.aminmax()).float())
    for device, device_bounds in bounds.items():
        finite = torch.stack(device_bounds).isfinite().all(1).tolist()
        if False in finite:
            return names[device][finite.index(False)]
    return None


def _plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensor itself, or the parts of a wrapper such as torchao's 8-bit tensors."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain_tensors(getattr(tensor, name))
    else:
        yield tensor
