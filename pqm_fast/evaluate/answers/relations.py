"""Equations and inequalities: what they are compared by."""

from fractions import Fraction
from typing import Any

from pqm_fast.evaluate.answers.keys import Key, number_key
from pqm_fast.evaluate.answers.parse import Node, NotRead, is_rounded, parse, variables
from pqm_fast.evaluate.answers.value import SAME, NoValue, at_points, digits, to_float, value

_TINY = Fraction(1, 10**SAME)
_FLIPPED = {">": "<", r"\ge": r"\le", "<": ">", r"\le": r"\ge"}


def equation_key(left: str, right: str) -> Key | None:
    """Both sides up to a common factor: y = 3x - 2 is 3x - y = 2."""
    try:
        own = _differences(left, right)
    except NotRead:
        return None
    scale = next((v for v in own if v is not None and v != 0), None)
    if scale is None:
        return None
    return ("equation", *(digits(None if v is None else v / scale) for v in own))


def _differences(left: str, right: str) -> list[Any]:
    return at_points(Node("add", (parse(left), Node("negative", (parse(right),)))))


def inequality_key(sides: list[str], signs: list[str]) -> Key | None:
    nodes = [parse(side) for side in sides]
    names = set().union(*map(variables, nodes))
    if len(names) == 1 and len(signs) <= 2:
        found = _interval(nodes, signs, names.pop())
        if found is not None:
            return found
    if len(signs) > 1 or signs[0] == r"\approx":
        return None
    own = _differences(*sides)
    if signs[0] in (">", r"\ge"):
        own, signs = [None if v is None else -v for v in own], [_FLIPPED[signs[0]]]
    scale = next((v for v in own if v is not None and v != 0), None)
    if scale is None or not all(v is None or v.imag == 0 for v in own):
        return None
    size = abs(scale) if signs[0] != r"\ne" else scale
    return ("inequality", signs[0], *(digits(None if v is None else v / size) for v in own))


def _interval(nodes: list[Node], signs: list[str], name: str) -> Key | None:
    """Where one variable lies: between numbers, in a linear expression."""
    if len(nodes) == 2:
        nodes = [Node("add", (nodes[0], Node("negative", (nodes[1],)))), Node("number", (Fraction(0), False))]
    at = next(i for i, node in enumerate(nodes) if variables(node))
    if sum(bool(variables(node)) for node in nodes) != 1 or (len(nodes) == 3 and at != 1):
        return None
    try:
        start, *rest = (value(nodes[at], {name: Fraction(x)}) for x in (0, 1, 2, -3))
        slope = rest[0] - start
        if slope == 0 or any(
            abs(v - start - x * slope) > abs(slope) * _TINY for v, x in zip(rest, (1, 2, -3), strict=True)
        ):
            return None
    except (NoValue, TypeError):
        return None
    exact = not any(map(is_rounded, nodes))
    infinite = to_float(value(parse(r"\infty")))
    low, high = (number_key(-infinite), False), (number_key(infinite), False)
    for k, sign in enumerate(signs):
        left = k + 1 == at  # the number stands left of the variable
        bound = number_key((value(nodes[k] if left else nodes[k + 1]) - start) / slope, exact)
        if sign == r"\ne":
            return ("not", bound) if len(signs) == 1 else None
        if sign not in _FLIPPED:
            return None
        end = (bound, sign in (r"\le", r"\ge"))
        if ((sign in ("<", r"\le")) == left) == (slope > 0):
            low = end
        else:
            high = end
    if not low[1] and not high[1]:
        return ("tuple", low[0], high[0])  # as (1, 2) reads
    return ("interval", low[0], high[0], low[1], high[1])
