"""Makes the keys of equations and inequalities."""

from fractions import Fraction
from operator import sub, truediv
from typing import Any

from pqm_fast.evaluate.answers.expression import Node, NotRead, is_rounded, variables
from pqm_fast.evaluate.answers.keys import Key, number_key
from pqm_fast.evaluate.answers.parse import parse
from pqm_fast.evaluate.answers.value import SAME, NoValue, at_points, combined, digits, to_float, value

_FLIPPED = {">": "<", r"\ge": r"\le", "<": ">", r"\le": r"\ge"}


def equation_key(left: str, right: str) -> Key | None:
    """The key of an equation. One that is linear in a single variable is compared by its solution, others by both sides
    up to a common factor, so that y = 3x - 2 is 3x - y = 2."""
    try:
        nodes = [parse(left), parse(right)]
        if root := _root(nodes):
            return root
        values = _differences(*nodes)
    except NotRead:
        return None
    scale = next((v for v in values if v is not None and v != 0), None)
    if scale is None:
        return None
    return ("equation", *_multiples(values, scale))


def _root(nodes: list[Node]) -> Key | None:
    names = set().union(*map(variables, nodes))
    if len(names) != 1:
        return None
    name = names.pop()
    line = _line(_difference(*nodes), name)
    if line is None:
        return None
    start, slope = line
    exact = not any(map(is_rounded, nodes))
    return ("named", name, number_key(combined(truediv, -start, slope), exact))


def _line(node: Node, name: str) -> tuple[Any, Any] | None:
    """(value at 0, slope) of an expression that is linear in its one variable; None if it is not."""
    points = (0, 1, -7, 1000)
    try:
        values = [value(node, {name: Fraction(x)}) for x in points]
    except NoValue:
        return None
    if not all(isinstance(v, Fraction) for v in values):
        values = [to_float(v) for v in values]
    start, slope = values[0], values[1] - values[0]
    if slope == 0 or any(
        abs(v - start - x * slope) * 10**SAME > abs(slope) for v, x in zip(values, points, strict=True)
    ):
        return None
    return start, slope


def _difference(left: Node, right: Node) -> Node:
    return Node("add", (left, Node("negative", (right,))))


def _differences(left: Node, right: Node) -> list[Any]:
    return at_points(_difference(left, right))


def _multiples(values: list[Any], factor: Any) -> list[str]:
    """The values at the points as multiples of `factor`."""
    return [digits(None if v is None else combined(truediv, v, factor)) for v in values]


def inequality_key(sides: list[str], signs: list[str]) -> Key | None:
    """The key of an inequality. One that is linear in a single variable is compared by the bounds of that variable,
    others by the difference of both sides up to a positive factor.

    Raises:
        NotRead: a side is not an expression.
    """
    nodes = [parse(side) for side in sides]
    names = set().union(*map(variables, nodes))
    if len(names) == 1 and len(signs) <= 2:
        interval = _interval(nodes, signs, names.pop())
        if interval is not None:
            return interval
    if len(signs) > 1 or signs[0] == r"\approx":
        return None
    values = _differences(*nodes)
    if signs[0] in (">", r"\ge"):
        values, signs = [None if v is None else -v for v in values], [_FLIPPED[signs[0]]]
    scale = next((v for v in values if v is not None and v != 0), None)
    if scale is None or not all(v is None or v.imag == 0 for v in values):
        return None
    size = abs(scale) if signs[0] != r"\ne" else scale
    return ("inequality", signs[0], *_multiples(values, size))


def _interval(nodes: list[Node], signs: list[str], name: str) -> Key | None:
    if len(nodes) == 2:
        plain = any(a.do == "variable" and not variables(b) for a, b in (nodes, nodes[::-1]))
        if not plain:
            nodes = [_difference(*nodes), Node("number", (Fraction(0), False))]
    variable_side = next(i for i, node in enumerate(nodes) if variables(node))
    if sum(bool(variables(node)) for node in nodes) != 1 or (len(nodes) == 3 and variable_side != 1):
        return None
    line = _line(nodes[variable_side], name)
    if line is None or any(v.imag != 0 for v in line):
        return None
    start, slope = line
    exact = not any(map(is_rounded, nodes))
    minus_infinity, infinity = number_key(float("-inf")), number_key(float("inf"))
    low, high = (minus_infinity, False), (infinity, False)
    for k, sign in enumerate(signs):
        number_is_left = k + 1 == variable_side  # the side with the number is to the left of the variable
        end = value(nodes[k] if number_is_left else nodes[k + 1])
        if end.imag != 0 or sign not in (*_FLIPPED, r"\ne"):
            return None
        bound = number_key(combined(truediv, combined(sub, end, start), slope), exact)
        if sign == r"\ne":
            both_sides = {("tuple", minus_infinity, bound), ("tuple", bound, infinity)}
            return ("union", frozenset(both_sides)) if len(signs) == 1 else None
        end_point = (bound, sign in (r"\le", r"\ge"))
        if ((sign in ("<", r"\le")) == number_is_left) == (slope > 0):
            low = end_point
        else:
            high = end_point
    if not low[1] and not high[1]:
        return ("tuple", low[0], high[0])  # the key of (1, 2)
    return ("interval", low[0], high[0], low[1], high[1])
