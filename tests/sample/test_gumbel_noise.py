"""Gumbel noise: its distribution, and what it depends on."""

import math

import pytest
import torch

from pqm_fast.sample.gumbel_noise import gumbel

MASK = 2**64 - 1


def splitmix64(seed: int, index: int) -> int:
    """Output `index` (from 0) of the published generator, in Python's integers."""
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_reference_of_the_reference():
    # the first outputs for seed 1234567, as published with the generator
    assert [splitmix64(1234567, i) for i in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 1234567])
def test_noise_is_the_generator_read_at_any_index(seed):
    for position, vocabulary in ((0, 5), (3, 7), (20_000, 200_000)):
        got = gumbel(torch.tensor([seed]), position, vocabulary)[0]
        for token in (0, 1, vocabulary - 1):
            uniform = ((splitmix64(seed & MASK, position * vocabulary + token) >> 11) + 0.5) / 2**53
            expected = -math.log(-math.log1p(-uniform))
            assert float(got[token]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_row_is_the_same_whatever_batch_it_is_in():
    seeds = torch.randint(-(2**63), 2**63 - 1, (50,), generator=torch.Generator().manual_seed(0))
    together = gumbel(seeds, 4, 300)
    for k in (0, 17, 49):
        assert torch.equal(gumbel(seeds[k : k + 1], 4, 300)[0], together[k])
        assert torch.equal(gumbel(seeds[k:], 4, 300)[0], together[k])
    assert len(together.unique()) > 0.99 * together.numel()


def test_the_largest_of_noisy_logits_follows_their_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0, 2.5])
    seeds = torch.arange(100_000)
    first, second = ((logits + gumbel(seeds, position, 6)).argmax(1) for position in (0, 1))
    p = logits.double().softmax(0)
    for drawn in (first, second):
        expected = p * len(seeds)
        chi_squared = ((drawn.bincount(minlength=6) - expected) ** 2 / expected).sum()
        assert chi_squared < 20.5  # 5 degrees of freedom: exceeded with probability 0.001
    joint = torch.outer(p, p).flatten() * len(seeds)  # positions are independent of each other
    chi_squared = (((first * 6 + second).bincount(minlength=36) - joint) ** 2 / joint).sum()
    assert chi_squared < 66.6  # 35 degrees of freedom, 0.001


def test_noise_is_never_too_large_nor_nan():
    noise = gumbel(torch.arange(2000), 0, 1000)
    assert noise.isfinite().all()
    assert float(noise.max()) < 38  # -log(2^-54)
    assert abs(float(noise.double().mean()) - 0.5772) < 0.005
    assert abs(float(noise.double().var()) - math.pi**2 / 6) < 0.01
