r"""Parses an expression in LaTeX or plain notation into a tree.

The parser reads arithmetic, roots, powers, logarithms, trigonometric functions, binomials, factorials, i, e and pi; a
letter is a variable. Anything else (integrals, sets, words) raises `NotRead`.
"""

import re
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

from pqm_fast.evaluate.answers.expression import (
    FUNCTION_WORDS,
    FUNCTIONS,
    GREEK,
    SHORT_NAMES,
    TRIGONOMETRIC,
    Node,
    NotRead,
)

DEPTH = 60  # levels of nested brackets
THOUSANDS = r"[1-9]\d{0,2}(?:,\d{3})+(?!\d)"

_words = "|".join(sorted(FUNCTION_WORDS, key=len, reverse=True))
_TOKEN = re.compile(
    rf"""\s*(?:
      (?P<mixed>\d+(?:\s+\d+\s*/\s*\d+(?![\d.])|\s*\\frac\s*(?:\{{\s*\d+\s*\}}\s*\{{\s*\d+\s*\}}|\d\s*\d)))
     |(?P<repeating>\d*\.\d*(?:\\overline\s*\{{\s*\d+\s*\}}|\(\d+\)|(?:\\dot\s*\{{\s*\d\s*\}})+(?:\d*\\dot\s*\{{\s*\d\s*\}})?))
     |(?P<number>(?:(?:{THOUSANDS}|\d+)(?:\.\d+|\.(?!\d))?|\.\d+)(?:[eE][-+]?\d+(?![\d.]))?)
     |(?P<degrees>degrees?(?![a-zA-Z]))
     |(?P<command>\\(?:[a-zA-Z]+|.))
     |(?P<word>(?<![a-zA-Z])(?:{_words})(?![a-zA-Z]))
     |(?P<letter>[a-zA-Z])
     |(?P<sign>\*\*|[-+*/^_()\[\]{{}}|!%,'])
    )""",
    re.VERBOSE,
)


@lru_cache(maxsize=65536)
def parse(text: str) -> Node:
    """The tree of an expression. Raises `NotRead`."""
    return _Parser(text).whole()


class _Parser:
    """Recursive descent: sum, product, sign, power, atom."""

    def __init__(self, text: str):
        self.tokens: list[tuple[str, str]] = []
        position, text = 0, text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise NotRead(text)
            kind = match.lastgroup or ""
            self.tokens.append((kind, match[kind]))
            position = match.end()
        numbers = ("number", "repeating", "mixed")
        for k, ((a, _), (b, _)) in enumerate(pairwise(self.tokens)):
            if a in numbers and b in numbers and (k == 0 or self.tokens[k - 1][1] != "_"):
                raise NotRead(f"{text}: numbers side by side")
        self.at, self.depth, self.bars = 0, 0, 0

    def whole(self) -> Node:
        node = self.sum()
        if self.at < len(self.tokens):
            raise NotRead(self.token)
        return node

    @property
    def token(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    @property
    def kind(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        """Consumes and returns the next token if it is one of `wanted`, else returns an empty string."""
        if self.token and self.token in wanted:
            self.at += 1
            return self.tokens[self.at - 1][1]
        return ""

    def expect(self, token: str) -> None:
        if not self.take(token):
            raise NotRead(f"{token} expected, found {self.token or 'the end'}")

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > DEPTH:
            raise NotRead("too many nested brackets")
        node = self.product()
        while sign := self.take("+", "-"):
            term = self.product()
            node = Node("add", (node, term if sign == "+" else Node("negative", (term,))))
        self.depth -= 1
        return node

    def product(self) -> Node:
        node = self.signed()
        while True:
            if self.take("*", r"\cdot", r"\times"):
                node = Node("multiply", (node, self.signed()))
            elif self.take("/", r"\div"):
                node = Node("divide", (node, self.signed()))
            elif self.starts_atom():
                node = Node("multiply", (node, self.power()))
            else:
                return node

    def starts_atom(self) -> bool:
        if self.token == "|":
            return not self.bars
        return (
            self.kind in ("number", "mixed", "repeating", "word", "letter")
            or self.token in ("(", "[", "{")
            or (self.kind == "command" and self.token[1:] in _ATOM_COMMANDS)
        )

    def signed(self) -> Node:
        if self.take("-"):
            return Node("negative", (self.signed(),))
        self.take("+")
        return self.power()

    def power(self) -> Node:
        node = self.atom()
        while True:
            if self.take("!"):
                if node.do == "factorial":
                    raise NotRead("a double factorial")
                node = Node("factorial", (node,))
            elif self.take("%", r"\%"):
                node = Node("divide", (node, _number("100")))
            elif self.kind == "degrees":
                self.at += 1
                half_turn = Node("divide", (Node("constant", ("pi",)), _number("180")))
                node = Node("multiply", (node, half_turn))
            elif self.take("^", "**"):
                return Node("power", (node, self.exponent()))
            else:
                return node

    def exponent(self) -> Node:
        if self.take("-"):
            return Node("negative", (self.exponent(),))
        self.take("+")
        return self.power()

    def atom(self) -> Node:
        kind, token = self.kind, self.token
        self.at += 1
        if kind == "number":
            return _number(token)
        if kind == "mixed":
            whole, *fraction = re.findall(r"\d+", token)
            top, bottom = fraction if len(fraction) == 2 else fraction[0]  # \frac12
            return Node("add", (_number(whole), Node("divide", (_number(top), _number(bottom)))))
        if kind == "repeating":
            return Node("number", (_repeating(token), False))
        if token in ("(", "[", "{"):
            return self.closed({"(": ")", "[": "]", "{": "}"}[token])
        if token == "|":
            return self.absolute("|")
        if kind == "letter":
            return self.variable(token)
        if kind == "word" or kind == "command":
            return self.command(token.lstrip("\\"), command=kind == "command")
        raise NotRead(token or "the end")

    def closed(self, end: str) -> Node:
        bars, self.bars = self.bars, 0
        node = self.sum()
        self.bars = bars
        self.expect(end)
        return node

    def absolute(self, end: str) -> Node:
        self.bars += 1
        node = self.sum()
        self.bars -= 1
        self.expect(end)
        return Node("abs", (node,))

    def variable(self, name: str) -> Node:
        if self.take("_"):
            if self.take("{"):
                index = ""
                while self.token and self.token != "}":
                    index += self.token
                    self.at += 1
                self.expect("}")
            else:
                index = self.token
                self.at += 1
            return Node("variable", (f"{name}_{index}",))
        while self.take("'"):
            name += "'"
        if name in ("e", "i"):
            return Node("constant", (name,))
        return Node("variable", (name,))

    def command(self, name: str, command: bool) -> Node:
        if name == "frac":
            return Node("divide", (self.argument(), self.argument()))
        if name == "sqrt":
            index = self.closed("]") if self.take("[") else _number("2")
            return Node("root", (self.argument() if command else self.atom(), index))
        if name in ("binom", "dbinom", "tbinom"):
            return Node("binomial", (self.argument(), self.argument()))
        if name in ("lvert", "abs"):
            return self.absolute(r"\rvert") if name == "lvert" else Node("abs", (self.argument(),))
        if name in ("lfloor", "lceil"):
            node = self.closed(rf"\r{name[1:]}")
            return Node(name[1:], (node,))
        if name in ("pi", "imath"):
            return Node("constant", (name[0] if name == "imath" else name,))
        if name in ("infty", "infinity", "inf"):
            return Node("constant", ("infinity",))
        name = SHORT_NAMES.get(name, name)
        if name in FUNCTIONS:
            return self.function(name)
        if name in GREEK:
            return self.variable(f"\\{name}")
        raise NotRead(name)

    def argument(self) -> Node:
        r"""An argument of a command: in braces or brackets, or a single digit or letter as in \frac12."""
        if self.kind == "number" and len(self.token) > 1 and self.token.isdigit():
            digit, other_digits = self.token[0], self.token[1:]
            self.tokens[self.at] = ("number", other_digits)
            return _number(digit)
        return self.atom()

    def function(self, name: str) -> Node:
        base = self.argument() if name == "log" and self.take("_") else None
        exponent = self.exponent() if self.take("^") else None
        if name in TRIGONOMETRIC and exponent == Node("negative", (_number("1"),)):
            name, exponent = f"arc{name}", None
        if self.token in ("(", "[", "{"):
            node = self.atom()  # sin(x)^2 is the square of the sine
        else:  # \sin 2x: up to the next function, sign or bracket
            node = self.signed()
            while self.kind in ("number", "letter", "mixed") or self.token in (r"\pi", r"\frac", r"\sqrt"):
                node = Node("multiply", (node, self.power()))
        node = Node("logarithm", (node, base)) if base is not None else Node("function", (name, node))
        return node if exponent is None else Node("power", (node, exponent))


_ATOM_COMMANDS = {
    *FUNCTIONS,
    *GREEK,
    *("frac", "sqrt", "pi", "binom", "dbinom", "tbinom", "lvert", "lfloor", "lceil", "infty", "imath"),
}


def _number(text: str) -> Node:
    """A number node: the value, and whether the text has a decimal point, so that it may be rounded."""
    return Node("number", (Fraction(text.replace(",", "").rstrip(".")), "." in text.rstrip(".")))


def _repeating(text: str) -> Fraction:
    integer_part, _, decimals = text.partition(".")
    fixed, *period_parts = re.split(r"\D+", decimals)
    period = "".join(period_parts)
    start = Fraction(int(integer_part or 0)) + Fraction(int(fixed or 0), 10 ** len(fixed))
    return start + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
