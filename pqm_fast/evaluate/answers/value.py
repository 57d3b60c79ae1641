r"""Computes the value of an expression: exact where it is rational, else to more than 100 digits.

Two expressions are equal if their values are equal. Variables are set to fixed values (`at_points`).
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
from hashlib import blake2b
from math import comb, factorial, isqrt
from operator import add, mul, truediv
from typing import Any

import mpmath

from pqm_fast.evaluate.answers.expression import HYPERBOLIC, TRIGONOMETRIC, Node, NotRead, variables

DIGITS = 120  # digits that values are computed with
SAME = 90  # digits in which two values of one number agree, whatever the order of operations
EXACT_BITS = 20_000  # bits of a numerator or denominator; a rational number with more is a float of `DIGITS`
LARGEST = 1_000_000  # bits of a value before the point: 2^1000000 has a value, 9^{9^9} does not
# the size of the variables at each point where an expression is evaluated; from the third point on, the sign varies
SCALES = (1, 300, 1, 20, 1, 300)

_mp = mpmath.mp.clone()  # a private context: no other code reads or changes its precision
_mp.dps = DIGITS
Value = Any  # Fraction, or a real or complex number of mpmath

_FUNCTIONS: dict[str, Callable[[Value], Value]] = {
    **{name: getattr(_mp, name) for name in (*TRIGONOMETRIC, *HYPERBOLIC)},
    **{f"arc{name}": getattr(_mp, f"a{name}") for name in TRIGONOMETRIC},
    "ln": _mp.log,
    "log": _mp.log10,
    "lg": _mp.log10,
    "exp": _mp.exp,
}


class NoValue(NotRead):
    """An expression without a value: a division by zero, or a number too large to write out."""


def has_small_term(node: Node) -> bool:
    """Whether a sum in `node` has a term too small for six digits to show, so that even its last digit is meant."""
    if any(map(has_small_term, node.operands)):
        return True
    if node.do != "add":
        return False
    sizes = sorted(abs(to_float(value(part))) for part in node.parts)
    return 0 < sizes[0] < sizes[1] * _mp.mpf(10) ** -12


def value(node: Node, point: Mapping[str, Value] | None = None) -> Value:
    """The value as a Fraction where it is rational, else as a number of mpmath. Raises `NoValue`."""
    number = _value(node, point or {}, DIGITS)
    if isinstance(number, Fraction) or _mp.isinf(number):
        return number
    if _mp.isnan(number):
        raise NoValue("undefined")
    size = abs(number)
    # terms may have cancelled: then the number shrinks at twice the precision, and its value is 0
    if size < _mp.mpf(10) ** -40 and abs(_value(node, point or {}, 2 * DIGITS)) < size * _mp.mpf(10) ** -30:
        return Fraction(0)
    if isinstance(number, _mp.mpc):
        negligible = size * _mp.mpf(10) ** -SAME
        real, imaginary = (_mp.mpf(0) if abs(part) < negligible else part for part in (number.real, number.imag))
        return _mp.mpc(real, imaginary) if imaginary else real
    return number


def at_points(node: Node) -> list[Value | None]:
    """The values at six fixed points of the variables; None where there is no value. Raises `NoValue` if there is none
    at any point."""
    values: list[Value | None] = []
    for k in range(len(SCALES)):
        try:
            number = value(node, {name: coordinate(name, k) for name in variables(node)})
            values.append(number if isinstance(number, Fraction) or _mp.isfinite(number) else None)
        except NoValue:
            values.append(None)
    if all(number is None for number in values):
        raise NoValue("undefined")
    return values


def coordinate(name: str, k: int) -> Value:
    """The value of variable `name` at point k, about `SCALES[k]` in size."""
    seed = int.from_bytes(blake2b(f"{name} {k}".encode(), digest_size=16).digest(), "little")
    magnitude = (Fraction(seed % 10**12, 5 * 10**11 + 39) + Fraction(1, 2)) * SCALES[k]
    return to_float(-magnitude if k > 1 and seed >> 100 & 1 else magnitude)


def digits(number: Value | None) -> str:
    """The number as text, to `SAME` digits."""
    return "none" if number is None else _mp.nstr(to_float(number), SAME)


def from_decimals(real: str, imaginary: str) -> Value:
    number = _mp.mpc(real, imaginary)
    return number if number.imag else number.real


def to_float(number: Value) -> Value:
    return _mp.mpf(number.numerator) / number.denominator if isinstance(number, Fraction) else number


def combined(do: Callable[[Value, Value], Value], x: Value, y: Value) -> Value:
    """do(x, y): exact if both are a Fraction, else in floating point."""
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return do(x, y)
    return do(to_float(x), to_float(y))


def _value(node: Node, point: Mapping[str, Value], precision: int) -> Value:
    with _mp.workdps(precision):
        try:
            return _Evaluation(point).of(node)
        except (ZeroDivisionError, OverflowError, ValueError, TypeError, mpmath.libmp.NoConvergence) as error:
            raise NoValue(str(error)) from error


class _Evaluation:
    def __init__(self, point: Mapping[str, Value]):
        self.point = point

    def of(self, node: Node) -> Value:
        return _bounded(getattr(self, f"_{node.do}")(*node.parts))

    def _number(self, number: Fraction, decimal: bool) -> Value:
        return number

    def _constant(self, name: str) -> Value:
        return {"e": +_mp.e, "i": _mp.mpc(0, 1), "pi": +_mp.pi, "infinity": _mp.inf}[name]

    def _variable(self, name: str) -> Value:
        return self.point[name]

    def _negative(self, a: Node) -> Value:
        return -self.of(a)

    def _add(self, a: Node, b: Node) -> Value:
        return combined(add, self.of(a), self.of(b))

    def _multiply(self, a: Node, b: Node) -> Value:
        return combined(mul, self.of(a), self.of(b))

    def _divide(self, a: Node, b: Node) -> Value:
        return combined(truediv, self.of(a), self.of(b))

    def _abs(self, a: Node) -> Value:
        return abs(self.of(a))

    def _floor(self, a: Node) -> Value:
        return Fraction(int(_mp.floor(to_float(_real(self.of(a))))))

    def _ceil(self, a: Node) -> Value:
        return Fraction(int(_mp.ceil(to_float(_real(self.of(a))))))

    def _factorial(self, a: Node) -> Value:
        n = self.of(a)
        if isinstance(n, Fraction) and n.denominator == 1 and 0 <= n <= 2000:
            return Fraction(factorial(int(n)))
        if abs(n) > 20_000:
            raise NoValue("too large")
        return _mp.gamma(to_float(n) + 1)

    def _binomial(self, a: Node, b: Node) -> Value:
        n, k = self.of(a), self.of(b)
        if all(isinstance(v, Fraction) and v.denominator == 1 and 0 <= v <= 5000 for v in (n, k)):
            return Fraction(comb(int(n), int(k)))
        return _mp.binomial(to_float(n), to_float(k))

    def _function(self, name: str, a: Node) -> Value:
        x = to_float(self.of(a))
        if name == "exp":
            _check_reach(_mp.mpf(2), x)
        elif abs(x) > _mp.mpf(10) ** 30:
            raise NoValue("too large")
        return _FUNCTIONS[name](x)

    def _logarithm(self, a: Node, base: Node) -> Value:
        return _mp.log(to_float(self.of(a))) / _mp.log(to_float(self.of(base)))

    def _root(self, a: Node, index: Node) -> Value:
        x, n = self.of(a), self.of(index)
        if isinstance(n, Fraction) and n.denominator == 1 and n % 2 and isinstance(x, Fraction) and x < 0:
            return -_power(-x, 1 / n)  # the real root
        return _power(x, Fraction(1) / n if isinstance(n, Fraction) else 1 / n)

    def _power(self, a: Node, exponent: Node) -> Value:
        return _power(self.of(a), self.of(exponent))


def _power(x: Value, y: Value) -> Value:
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        if x == 0 and y == 0:
            raise NoValue("0^0")
        bits = max(x.numerator.bit_length(), x.denominator.bit_length())
        if y.denominator == 1 and abs(y) * bits <= EXACT_BITS:
            return x ** int(y)
        if y.denominator == 2 and x >= 0 and abs(y) * bits <= EXACT_BITS:
            top, bottom = isqrt(x.numerator), isqrt(x.denominator)
            if top * top == x.numerator and bottom * bottom == x.denominator:
                return Fraction(top, bottom) ** int(2 * y)
    if isinstance(x, Fraction) and x == 0:
        return _mp.power(0, to_float(y))
    _check_reach(x, y)
    is_whole = isinstance(y, Fraction) and y.denominator == 1
    return _mp.power(to_float(x), int(y) if is_whole else to_float(y))


def _check_reach(x: Value, y: Value) -> None:
    """Raises `NoValue` if x^y is too large to be written out."""
    size = abs(to_float(x))
    if size and abs(to_float(y)) * (abs(_mp.log(size, 2)) + 4) > LARGEST:
        raise NoValue("too large")


def _bounded(x: Value) -> Value:
    if isinstance(x, Fraction) and max(x.numerator.bit_length(), x.denominator.bit_length()) > 2 * EXACT_BITS:
        return to_float(x)
    return x


def _real(x: Value) -> Value:
    if isinstance(x, _mp.mpc):
        raise NoValue("not real")
    return x
