"""Numbers, tables and the heading of a report as text."""

from collections.abc import Sequence
from typing import Any


def short(value: float, digits: int = 3) -> str:
    """At least this many significant digits: all digits before the point, and after it only those that are needed."""
    return f"{value:,.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """A table with columns of even width; those in `left` are aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        shown = [cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(cells)]
        lines.append("  ".join(shown).rstrip())
    return "\n".join(lines)


def measured_on(environment: dict[str, Any]) -> str:
    """Device, versions and commit, from what `pqm_fast.common.environment.describe` returns."""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    return f"{environment['device']}; {versions}; commit {environment['commit'] or 'unknown'}"
