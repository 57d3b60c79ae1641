"""Text with brackets: where it is split, and what encloses it."""

import re

from pqm_fast.evaluate.answers.parse import THOUSANDS

_GROUPED = re.compile(rf"(?<![\d.,]){THOUSANDS}")


def split(text: str, *separators: str, grouped: bool = True) -> list[str]:
    """At separators outside all brackets. `grouped`: a comma that groups thousands, as in 1,000, is no separator."""
    inside = {k for match in _GROUPED.finditer(text) for k in range(*match.span())} if grouped else set()
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        found = next((s for s in separators if text.startswith(s, i)), None) if depth == 0 else None
        if found is None or (found == "," and i in inside):
            i += 1
            continue
        parts.append(text[start:i])
        i += len(found)
        start = i
    return [*parts, text[start:]]


def elements(text: str, bracketed: bool = False) -> list[str]:
    """Of a list. Between brackets, a comma groups thousands only where others are followed by a blank: (1,000, 2)."""
    separators = (", and ", ", or ", " and ", " or ", ",", ";")
    return [part.strip() for part in split(text, *separators, grouped=not bracketed or ", " in text) if part.strip()]


def encloses(text: str, opening: str, closing: str) -> bool:
    """Whether the first bracket closes with the last."""
    depth = 0
    body = text[: -len(closing)]
    for i, c in enumerate(body):
        depth += (c in "([{") - (c in ")]}")
        if depth == 0 and i >= len(opening) and opening != "]":
            return False
    return True
