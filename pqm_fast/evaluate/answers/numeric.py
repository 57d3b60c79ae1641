"""Reads answers that are one number or expression: with a unit, in a base other than ten, or a remainder.

Each reader returns None for a text of another kind.
"""

import re
from fractions import Fraction
from operator import mul

from pqm_fast.evaluate.answers.expression import Node, NotRead, is_rounded, variables
from pqm_fast.evaluate.answers.keys import Form, expression_key, number_key
from pqm_fast.evaluate.answers.parse import parse
from pqm_fast.evaluate.answers.units import Quantity, compound, quantity
from pqm_fast.evaluate.answers.value import NoValue, at_points, combined, has_small_term, to_float, value
from pqm_fast.evaluate.answers.words import compact, has_words

_BASE_WORDS = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_BASES = _BASE_WORDS.split()
_IN_BASE = re.compile(
    r"\(?([0-9A-F]+)\)?(?:_\{?|\s*\(?(?:in\s+)?(?:\\text\{\s*)?base\s*\}?\s*-?)(?:\\text\{)?\(?(\d+|"
    + "|".join(_BASES)
    + r")\)?\}?\}?\)?"
)


def number_in_base(text: str) -> Form | None:
    """Reads `1011_2`. Its key is its digits, not the number 11: a question after another base asks for the digits."""
    match = _IN_BASE.fullmatch(text)
    if match is None:
        return None
    base = _BASES.index(match[2]) + 2 if match[2] in _BASES else int(match[2])
    return Form(("base", match[1].lstrip("0") or "0", base))


_MODULO = re.compile(r"(.*?)\s*(?:\\pmod\s*\{?\s*(\w+)\s*\}?|\(?\s*\\?(?:mod|bmod)\s*\{?\s*(\w+)\s*\}?\s*\)?)\s*")


def remainder(text: str) -> Form | None:
    r"""Reads `5 \pmod 7`, `x \equiv 5 \pmod 7`."""
    match = _MODULO.fullmatch(text)
    if match is None:
        return None
    name, _, left = match[1].rpartition(r"\equiv")
    try:
        number, modulus = value(parse(left)), value(parse(match[2] or match[3]))
    except (NotRead, KeyError):
        return None
    if not all(isinstance(v, Fraction) and v.denominator == 1 for v in (number, modulus)) or modulus <= 0:
        return None
    return Form(("remainder", int(number % modulus), int(modulus)), bare=(number_key(number),), name=name.strip())


def compound_quantity(text: str) -> Form | None:
    """Reads `5 feet 6 inches`."""
    parts = compound(text)
    if parts is None:
        return None
    try:
        total = sum(value(parse(part.number)) * part.unit.factor for part in parts)
    except NotRead:
        return None
    return Form(("quantity", number_key(total), parts[0].unit.dimension))


def number_or_expression(text: str) -> Form | None:
    """Reads a number with or without a unit, or an expression with variables."""
    measured = quantity(text)
    if measured is None or has_words(measured.number) or not measured.number.strip():
        return None
    try:
        node = parse(measured.number)
        return _expression(node, measured) if variables(node) else _number(node, measured)
    except NoValue:
        return Form(("text", compact(text)))  # a number that cannot be written out is only equal to itself
    except NotRead:
        return None


def _number(node: Node, measured: Quantity) -> Form:
    fine = has_small_term(node)
    exact = fine or not is_rounded(node)
    number = value(node) * measured.scale
    bare_key = number_key(number, exact, fine)
    unit = (measured.unit.main, measured.unit.per)
    if not any(unit):
        return Form(bare_key)
    if measured.unit.dimension == "angle":
        key = number_key(to_float(number) * value(parse(r"\pi/180")), exact)
    else:
        key = number_key(combined(mul, number, measured.unit.factor), exact)
        if measured.unit.dimension:
            key = ("quantity", key, measured.unit.dimension)
    return Form(key, bare=(bare_key,), unit=unit)


def _expression(node: Node, measured: Quantity) -> Form | None:
    key = expression_key(at_points(node))
    if measured.scale != 1 or measured.unit.per:
        return None
    if measured.unit.main:
        unit = (measured.unit.main, measured.unit.per)
        return Form(("quantity", key, measured.unit.main), bare=(key,), unit=unit)
    return Form(key)
