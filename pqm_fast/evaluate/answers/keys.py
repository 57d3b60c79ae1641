"""The keys of numbers and expressions. Two answers are the same if their keys are equal."""

from fractions import Fraction
from typing import Any, NamedTuple

from pqm_fast.evaluate.answers.value import SAME, NoValue, digits, to_float

Key = tuple[Any, ...]  # the kind of the answer, then its parts


class Form(NamedTuple):
    """The canonical form of an answer."""

    key: Key
    bare: tuple[Key, ...] = ()
    """Keys without the parts that may be left out: the variable of `x = 5`, the unit of `5 feet`."""
    unit: tuple[str, str] = ("", "")
    """The unit in one spelling: what is measured, and per what."""
    name: str = ""
    """The variable of `x = 5`."""
    unread: bool = False
    """Whether the answer is mathematics that is not read here: `key` is its text, and math-verify decides."""


ROUNDED = 6  # decimals, or digits of a number below 0.1
_NEAR = Fraction(1, 10**12)
_TINY = Fraction(1, 10**SAME)
_SIMPLE = 1000  # denominators of the fractions that a number may be confused with


def expression_key(values: list[Any]) -> Key:
    """The key of an expression from its values at fixed points of the variables (`value.at_points`)."""
    texts = tuple(map(digits, values))
    return number_key(values[0]) if len(set(texts)) == 1 else ("expression", *texts)  # x - x + 5 is 5


def number_key(number: Any, exact: bool = True, fine: bool = False) -> Key:
    """The six-digit rule: two numbers are the same if they agree after rounding to six decimals (numbers below 0.1: to
    six digits).

    A whole number equals only itself. So does an exact number that is very near a simple fraction but is not one:
    `1 + 10^{-20}` is not 1, and 0.33333333333333333333 (a decimal, so not `exact`) is 1/3. A `fine` number, one that
    was written with a tiny term, equals only itself.

    Raises:
        NoValue: the number is NaN.
    """
    if not isinstance(number, Fraction):
        if number.imag != 0:
            return ("complex", number_key(to_float(number.real), exact), number_key(to_float(number.imag), exact))
        number = number.real
        if number != number:  # infinity less infinity
            raise NoValue("undefined")
        if number in (float("inf"), float("-inf")):
            return ("number", "infinity" if number > 0 else "-infinity")
        if abs(number) > 10**30 or 0 < abs(number) * 10**300 < 1:
            return ("number", digits(number))
        number = Fraction(*_ratio(number))
    if number.denominator == 1:
        return ("number", str(number) if number.numerator.bit_length() < 10_000 else hex(number.numerator))
    simple = number.limit_denominator(_SIMPLE)
    distance = abs(number - simple)
    if exact and abs(number) * _TINY < distance < abs(number) * _NEAR:
        return ("number", digits(number))
    decimals = ROUNDED
    if abs(number) < Fraction(1, 10):
        decimals += len(str(int(1 / abs(number)))) - 1
    scale = 10**decimals
    rounded = Fraction((2 * number.numerator * scale + number.denominator) // (2 * number.denominator), scale)
    if fine and abs(number - rounded) > abs(number) * _TINY:
        return ("number", digits(number))
    return ("number", str(rounded))


def _ratio(number: Any) -> tuple[int, int]:
    sign, mantissa, exponent, _ = number._mpf_
    mantissa = -mantissa if sign else mantissa
    return (int(mantissa) << exponent, 1) if exponent >= 0 else (int(mantissa), 1 << -exponent)
