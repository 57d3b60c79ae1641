"""Splits text at separators outside brackets, and finds out whether brackets enclose it."""

import re

from pqm_fast.evaluate.answers.parse import THOUSANDS

_GROUPED = re.compile(rf"(?<![\d.,]){THOUSANDS}")


def split(text: str, *separators: str, grouped: bool = True) -> list[str]:
    """The parts between separators that are outside all brackets. With `grouped`, a comma that groups thousands, as in
    1,000, is not a separator."""
    thousands = {k for match in _GROUPED.finditer(text) for k in range(*match.span())} if grouped else set()
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        separator = next((s for s in separators if text.startswith(s, i)), None) if depth == 0 else None
        if separator is None or (separator == "," and i in thousands):
            i += 1
            continue
        parts.append(text[start:i])
        i += len(separator)
        start = i
    return [*parts, text[start:]]


def elements(text: str, bracketed: bool = False) -> list[str]:
    """The elements of a list. Between brackets, a comma groups thousands only if other commas are followed by a space:
    (1,000, 2)."""
    separators = (", and ", ", or ", " and ", " or ", ",", ";")
    return [part.strip() for part in split(text, *separators, grouped=not bracketed or ", " in text) if part.strip()]


def encloses(text: str, opening: str, closing: str) -> bool:
    """Whether the first bracket of the text is closed by the last."""
    depth = 0
    body = text[: -len(closing)]
    for i, c in enumerate(body):
        depth += (c in "([{") - (c in ")]}")
        if depth == 0 and i >= len(opening) and opening != "]":
            return False
    return True
