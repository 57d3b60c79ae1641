"""Sampling noise that depends on a sample's seed, its position and the token alone: not on the batch around it.

Adding Gumbel noise to logits and taking the largest draws from their softmax. The noise is a hash of (seed, position,
token), the splitmix64 generator read at any index, so that every row of a batch has its own stream without a
generator of its own, on every device the same.
"""

import torch

_GOLDEN, _FIRST, _SECOND = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def gumbel(seeds: torch.Tensor, position: int, vocabulary: int) -> torch.Tensor:
    """Standard Gumbel noise [B, vocabulary] float32 for one position, from seeds [B] int64."""
    tokens = torch.arange(vocabulary, device=seeds.device)
    z = seeds[:, None] + (tokens + (position * vocabulary + 1)) * _GOLDEN  # int64 wraps around
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    bits = _shifted(z ^ _shifted(z, 31), 11)
    # small values, which are the ones that win, keep their precision in float32; the largest would round to 1
    uniform = ((bits.float() + 0.5) * 2.0**-53).clamp(max=1 - 2.0**-24)
    return -torch.log(-torch.log1p(-uniform))


def _shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift to the right; torch's keeps the sign."""
    return (z >> bits) & (2 ** (64 - bits) - 1)
