"""Looks for NaN and infinity before weights reach a file."""

from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def first_not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity; None if all numbers are finite.

    Takes hardly any memory besides the tensors, and waits for each device once.
    """
    names: dict[torch.device, list[str]] = {}
    bounds: dict[torch.device, list[torch.Tensor]] = {}
    for name, tensor in tensors:
        for part in plain_parts(tensor.detach()).values():
            if part.numel() and part.is_floating_point():
                names.setdefault(part.device, []).append(name)
                # both bounds are NaN if any number is
                bounds.setdefault(part.device, []).append(torch.stack(part.aminmax()).float())
    for device, device_bounds in bounds.items():
        finite = torch.stack(device_bounds).isfinite().all(1).tolist()
        if False in finite:
            return names[device][finite.index(False)]
    return None


def plain_parts(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensor itself under "", or the parts of a wrapper such as torchao's 8-bit tensors under ".NAME"."""
    if isinstance(tensor, DTensor) or not is_traceable_wrapper_subclass(tensor):
        return {"": tensor}
    found: dict[str, torch.Tensor] = {}
    for name in tensor.__tensor_flatten__()[0]:
        found |= {f".{name}{end}": part for end, part in plain_parts(getattr(tensor, name)).items()}
    return found
