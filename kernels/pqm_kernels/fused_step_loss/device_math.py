"""Float32 arithmetic for Triton kernels in which no small result is the difference of large numbers.

A sum of exponentials is a pair (m, s) that represents s e^m, where m is the largest exponent. So s >= 1, unless nothing
was summed.
"""

import triton
import triton.language as tl

EMPTY_MAX = tl.constexpr(-1e38)  # m of an empty sum; finite, so that EMPTY_MAX - EMPTY_MAX is 0


@triton.jit
def log1p(e):
    """log(1 + e) for -1 < e <= 1. It puts back what rounding e to 1 + e loses."""
    rounded = (1.0 + e) - 1.0
    vanished = rounded == 0.0
    return tl.where(vanished, e, tl.log(1.0 + rounded) * (e / tl.where(vanished, 1.0, rounded)))


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x > 0, 1.0, e) / (1.0 + e)


@triton.jit
def add_exact(a, b):
    """a + b as the rounded sum and the rounding error (Knuth's two-sum)."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


@triton.jit
def add_pairs(high_a, low_a, high_b, low_b):
    """The sum of two numbers, each the sum of a float and a small rest. In scans and reductions of them nothing is
    rounded off that a float holds."""
    high, error = add_exact(high_a, high_b)
    return high, (low_a + low_b) + error


@triton.jit
def join(max_a, sum_a, max_b, sum_b):
    """The (m, s) of the union of two sets of exponentials."""
    m = tl.maximum(max_a, max_b)
    return m, sum_a * tl.exp(max_a - m) + sum_b * tl.exp(max_b - m)


@triton.jit
def include(m, s, exponent, error, mask):
    """The (m, s) of a set together with the masked exponentials e^(exponent + error); `error` is small."""
    exponent = tl.where(mask, exponent, EMPTY_MAX)
    new_m = tl.maximum(m, tl.max(exponent, 0))
    return new_m, s * tl.exp(m - new_m) + tl.sum(tl.where(mask, tl.exp((exponent - new_m) + error), 0.0), 0)


@triton.jit
def then(gain_a, offset_a, gain_b, offset_b):
    """The composition of two linear maps u -> gain * u + offset: first a, then b."""
    return gain_a * gain_b, offset_a * gain_b + offset_b
