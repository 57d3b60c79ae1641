"""The final norm of a decoder, outside the fused op: of all rows at once."""

import torch

Norm = tuple[torch.Tensor, float] | None
"""(weight [D], eps) of an RMSNorm; None if states are normed already."""


def normed(states: torch.Tensor, norm: Norm) -> torch.Tensor:
    """States [R, D] after the norm, float32, on their device."""
    x = states.float()
    if norm is None:
        return x
    weight, eps = norm
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.to(x.device)
