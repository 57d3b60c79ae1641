r"""The canonical form of an answer: two answers are the same if their `Form.key` is.

An answer is a number (with a unit), an expression with variables, an equation, an inequality, a list, a set, a tuple,
an interval, a matrix, or a text. A tuple, a list and a set are three kinds; `(1, 2)` is both a tuple and an open
interval. Keys are compared by equality, which makes sameness an equivalence whatever the notation.
"""

import re
from collections.abc import Callable
from functools import lru_cache

from pqm_fast.evaluate.answers.brackets import elements, encloses, split
from pqm_fast.evaluate.answers.expression import GREEK, NotRead, variables
from pqm_fast.evaluate.answers.judge import symbolic_values
from pqm_fast.evaluate.answers.keys import Form, Key, expression_key, number_key
from pqm_fast.evaluate.answers.notation import normalise
from pqm_fast.evaluate.answers.numeric import compound_quantity, number_in_base, number_or_expression, remainder
from pqm_fast.evaluate.answers.parse import parse
from pqm_fast.evaluate.answers.relations import equation_key, inequality_key
from pqm_fast.evaluate.answers.value import from_decimals
from pqm_fast.evaluate.answers.words import compact, is_mathematics

MAX_LENGTH = 300  # characters; a longer text is not an answer, and is only equal to the same text


@lru_cache(maxsize=65536)
def form(answer: str) -> Form:
    """The canonical form of an answer. Never raises on odd text."""
    if len(answer) > MAX_LENGTH:
        return Form(("text", answer.strip()))
    text = normalise(answer)
    if not text:
        return Form(("text", answer.strip()))
    text = _option(text) or text
    try:
        return _form(text)
    except (RecursionError, NotRead):
        return Form(("text", compact(text)))


# `B)`, `(B)`, `\text{(D)} 12`, `C. 12 apples`, `option C`: the letter of a choice, whatever text follows it
_OPTION = re.compile(
    r"(?:(?:(?i:option|choice)\s+)?(?:\(([A-J])\)|([A-J])[).:])|(?i:option|choice)\s+([A-J])"
    r"|\\text\{\s*\(?([A-J])[).:]?\s*\})(\s[^()]*)?"
)
_MORE = re.compile(r"\s*(?:and\b|or\b|[,&+\-*/=<>^_!|]|\\(?!text)|[A-Z]\b)")  # another option, or mathematics


def _option(text: str) -> str | None:
    """The letter of a choice: `B` for `B) 12 apples`."""
    match = _OPTION.fullmatch(text)
    if match is None or (match[5] and _MORE.match(match[5])):
        return None
    return next(filter(None, match.groups()))


def _form(text: str) -> Form:
    readers = (
        number_in_base,
        remainder,
        _union,
        compound_quantity,
        _named,
        _several,
        _bracketed,
        _related,
        _plus_minus,
        number_or_expression,
    )
    for read in readers:
        answer = read(text)
        if answer is not None:
            return answer
    return _by_math_verify(text) if is_mathematics(text) else Form(("text", compact(text)))


def _by_math_verify(text: str) -> Form:
    """The form of the value that math-verify reads in the text, or an unread one if there is none."""
    decimals = symbolic_values(text)
    if decimals is None:
        return Form(("text", compact(text)), unread=True)
    values = [from_decimals(real, imaginary) for real, imaginary in decimals]
    return Form(number_key(values[0], exact="." not in text) if len(values) == 1 else expression_key(values))


def _key(text: str) -> Key:
    """The key of a part of a compound answer."""
    part = _form(_option(text.strip()) or text.strip())
    if part.unread:
        raise _Unread
    return part.key


class _Unread(Exception):
    """A part of a compound answer cannot be read here, so math-verify decides about the whole answer."""


def _whole(read: Callable[[str], Form | None]) -> Callable[[str], Form | None]:
    """Makes a reader of compound answers return None where a part cannot be read here."""

    def reader(text: str) -> Form | None:
        try:
            return read(text)
        except _Unread:
            return None

    return reader


@_whole
def _union(text: str) -> Form | None:
    parts = split(text, r"\cup")
    if len(parts) == 1 and re.search(r"[<>]|\\[lg]e\b|\\ne\b", text):
        parts = split(text, " or ")
    if len(parts) == 1:
        return None
    keys = {_key(re.sub(r"^\s*[a-zA-Z]\s*\\in\s*", "", part)) for part in parts}
    return Form(("union", frozenset(keys)) if len(keys) > 1 else keys.pop())


_NAME = re.compile(
    rf"\s*((?:\\(?:{'|'.join(GREEK)})|[a-zA-Z]{{1,12}})(?:_(?:\w|\{{\w+\}}))?'?(?:\([a-z](?:,\s?[a-z])*\))?)\s*(?:=|\\approx|\\in(?![a-z]))(.*)"
)


@_whole
def _named(text: str) -> Form | None:
    r"""Reads `x = 5`, `x = 1 or x = 2`, `f(x) = x^2`, `x \in [0, 1]`."""
    match = _NAME.fullmatch(text)
    if match is None:
        return None
    name, right_side = match[1], match[2]
    name_again = re.compile(rf"(?<=[\s,;])\s*{re.escape(name)}\s*=")
    right_side = name_again.sub(" ", right_side)
    if "=" in right_side and len(elements(right_side)) > 1:
        return None  # x = 2 and y = 3
    right_side = right_side.rpartition("=")[2]
    if not right_side.strip():
        return None
    bare = _form(right_side.strip())
    if bare.unread:
        raise _Unread
    key: Key = ("named", name, bare.key)
    if bare.key[0] == "expression":
        key = equation_key(name, right_side) or key
    elif re.search(r"\\in(?![a-z])", text):
        key = bare.key
    return Form(key, bare=(bare.key, *bare.bare), unit=bare.unit, name=name)


@_whole
def _several(text: str) -> Form | None:
    r"""Reads `3, 5`, `3 and 5` or `3 or 5` as a list, in any order."""
    parts = elements(text)
    if len(parts) < 2:
        return None
    return _list(parts)


def _list(parts: list[str]) -> Form:
    return Form(("list", tuple(sorted(map(_key, parts), key=repr))))


_PAIRS = {"(": ")", "[": "]", r"\langle": r"\rangle"}
_BRACKETED = re.compile(r"(\(|\[|\]|\\?\{|\\langle)(.*?)(\)|\]|\[|\\?\}|\\rangle)", re.DOTALL)
_MATRIX = re.compile(r"\\begin\{[pbB]?matrix\}(.*)\\end\{[pbB]?matrix\}", re.DOTALL)


_BUILDER = re.compile(
    r"\s*[a-z]\s*(?:\\in\s*\\mathbb\{R\}\s*)?(?:\||\\mid|:)(.*(?:[<>]|\\[lg]e\b|\\ne\b).*)"
)  # {x : x > 1}


@_whole
def _bracketed(text: str) -> Form | None:
    if text == r"\emptyset":
        return Form(("set", frozenset()))
    if text == r"\mathbb{R}":
        return _form(r"(-\infty, \infty)")
    if rows := _MATRIX.fullmatch(text):
        cells = [[_key(cell) for cell in row.split("&")] for row in rows[1].split(r"\\") if row.strip()]
        return Form(("matrix", tuple(map(tuple, cells))))
    match = _BRACKETED.fullmatch(text)
    if match is None or not encloses(text, match[1], match[3]):
        return None
    opening, inside, closing = match[1], match[2], match[3]
    parts = elements(inside, bracketed=True)
    if opening == "{" and len(parts) < 2:
        return None  # the braces only group
    if opening.endswith("{") and closing.endswith("}"):
        if builder := _BUILDER.fullmatch(inside):
            return _form(builder[1])
        if re.search(r"\||\\mid|:", inside):
            return None
        return Form(("set", frozenset(map(_key, parts)) if inside.strip() else frozenset()))
    if len(parts) == 2 and opening in "([]" and closing in ")][":
        low, high = map(_key, parts)
        includes_low, includes_high = opening == "[", closing == "]"
        if (opening == "(" and closing == ")") or (opening == "]" and closing == "["):
            return Form(("tuple", low, high))
        return Form(("interval", low, high, includes_low, includes_high))
    if _PAIRS.get(opening) != closing:
        return None
    if len(parts) == 1:
        return _form(inside.strip()) if opening == "(" else None
    return Form(("tuple" if opening == "(" else "vector", *map(_key, parts)))


_RELATIONS = re.compile(r"(\\le(?![a-z])|\\ge(?![a-z])|\\ne(?![a-z])|<|>|=|\\approx)")


@_whole
def _related(text: str) -> Form | None:
    r"""Reads `2 + 3 = 5`, `3x - y = 2`, `1 < x \le 2`."""
    sides = _RELATIONS.split(text)
    if len(sides) < 3:
        return None
    signs, sides = sides[1::2], sides[::2]
    if set(signs) <= {"=", r"\approx"}:
        try:
            if len(sides) == 2 and any(variables(parse(side)) for side in sides):
                if parse(sides[1]).do == "variable" and not variables(parse(sides[0])):
                    return _form(f"{sides[1]} = {sides[0]}")
                key = equation_key(*sides)
                return None if key is None else Form(key)
            is_calculation = not any(variables(parse(side)) for side in sides[:-1])
        except NotRead:
            return None
        return _form(sides[-1].strip()) if is_calculation and sides[-1].strip() else None
    try:
        key = inequality_key(sides, signs)
        return None if key is None else Form(key)
    except NotRead:
        return None


@_whole
def _plus_minus(text: str) -> Form | None:
    if r"\pm" not in text:
        return None
    return _list([text.replace(r"\pm", a).replace(r"\mp", b) for a, b in ("+-", "-+")])
