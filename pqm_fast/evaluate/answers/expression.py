"""The tree of an expression, and the names of functions and Greek letters that may occur in it."""

from typing import Any, NamedTuple

TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc")
HYPERBOLIC = ("sinh", "cosh", "tanh")
FUNCTIONS = {*TRIGONOMETRIC, *HYPERBOLIC, *(f"arc{name}" for name in TRIGONOMETRIC), "ln", "log", "lg", "exp"}
SHORT_NAMES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}
FUNCTION_WORDS = {*FUNCTIONS, *SHORT_NAMES, "sqrt", "abs", "pi", "infinity", "inf", "binom"}
_SMALL_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau phi varphi "
    "chi psi omega ell"
)
_CAPITAL_GREEK = "Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega"
GREEK = (*_SMALL_GREEK.split(), *_CAPITAL_GREEK.split())


class NotRead(ValueError):
    """The text is not an expression of this kind."""


class Node(NamedTuple):
    """An operation and its operands: `Node("add", (Node, Node))`, `Node("variable", (name,))`.

    The parts of a `number` are its value (Fraction) and whether it was written with a decimal point, in which case it
    may be rounded.
    """

    do: str
    parts: tuple[Any, ...]

    @property
    def operands(self) -> list["Node"]:
        return [part for part in self.parts if isinstance(part, Node)]


def variables(node: Node) -> set[str]:
    if node.do == "variable":
        return {node.parts[0]}
    return set().union(*map(variables, node.operands))


def is_rounded(node: Node) -> bool:
    """Whether the expression contains a decimal, which may be a rounded number."""
    return (node.do == "number" and node.parts[1]) or any(map(is_rounded, node.operands))
