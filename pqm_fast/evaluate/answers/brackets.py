"""Text with brackets: where it is split, and what encloses it."""

import re


def split(text: str, *separators: str) -> list[str]:
    """At separators outside all brackets. A comma between digits that groups thousands is no separator."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        found = next((s for s in separators if text.startswith(s, i)), None) if depth == 0 else None
        if found == "," and _groups_thousands(text, i):
            found = None
        if found is None:
            i += 1
            continue
        parts.append(text[start:i])
        i += len(found)
        start = i
    return [*parts, text[start:]]


def _groups_thousands(text: str, comma: int) -> bool:
    return bool(re.search(r"(?<![\d.])\d{1,3}(?:,\d{3})*\Z", text[:comma]) and re.match(r",\d{3}(?!\d)", text[comma:]))


def elements(text: str) -> list[str]:
    return [part.strip() for part in split(text, ", and ", ", or ", " and ", " or ", ",", ";") if part.strip()]


def encloses(text: str, opening: str, closing: str) -> bool:
    """Whether the first bracket closes with the last."""
    depth = 0
    body = text[: -len(closing)]
    for i, c in enumerate(body):
        depth += (c in "([{") - (c in ")]}")
        if depth == 0 and i >= len(opening) and opening != "]":
            return False
    return True
