"""Sampling noise that depends only on a sample's seed, the position and the token, and not on the rest of the batch.

Adding Gumbel noise to logits and taking the largest sum draws a sample from their softmax. The noise is a hash of
(seed, position, token): the splitmix64 generator, read at any index. So every row of a batch has its own stream without
a generator object, and the stream is the same on every device.
"""

import torch

# splitmix64's constants, as int64 holds them
_GOLDEN_GAMMA, _MULTIPLIER_1, _MULTIPLIER_2 = (
    constant - 2**64 for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def gumbel(seeds: torch.Tensor, position: int, vocabulary: int) -> torch.Tensor:
    """Standard Gumbel noise [B, vocabulary] float32 for one position, from seeds [B] int64."""
    tokens = torch.arange(vocabulary, device=seeds.device)
    z = seeds[:, None] + (tokens + (position * vocabulary + 1)) * _GOLDEN_GAMMA  # int64 wraps around
    z = (z ^ _shifted(z, 30)) * _MULTIPLIER_1
    z = (z ^ _shifted(z, 27)) * _MULTIPLIER_2
    bits = _shifted(z ^ _shifted(z, 31), 11)
    # Small values yield the largest noise, and keep their precision in float32. The largest would round to 1.
    uniform = ((bits.float() + 0.5) * 2.0**-53).clamp(max=1 - 2.0**-24)
    return -torch.log(-torch.log1p(-uniform))


def _shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift to the right; torch's own shift keeps the sign."""
    return (z >> bits) & (2 ** (64 - bits) - 1)
