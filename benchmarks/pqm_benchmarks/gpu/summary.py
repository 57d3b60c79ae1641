"""A summary.json as text, in about 30 lines."""

from collections.abc import Sequence
from typing import Any

from pqm_benchmarks.shared.text import aligned, measured_on

MOST = 6  # lines of cases left out, and of failed tests


def text(summary: Sequence[dict[str, Any]]) -> str:
    """Card, versions and commit; a line for each stage; the figures against their targets; what was left out."""
    rows = [[row["name"], row["status"], f"{row['seconds']:,.0f} s", _headline(row)] for row in summary]
    parts = [*heading(summary), aligned(rows, left=(0, 1, 3))]
    if target_rows := targets(summary):
        parts.append(aligned([["target", "", "measured", ""], *target_rows], left=(0, 3)))
    left_out = [f"{case}: {why}" for row in summary for case, why in row["figures"].get("left_out", {}).items()]
    failures = [f"{test}: {why}" for row in summary for test, why in row["figures"].get("failures", {}).items()]
    parts += _some("left out", left_out) + _some("failed", failures)
    return "\n".join(parts)


def heading(summary: Sequence[dict[str, Any]]) -> list[str]:
    """The line with device, versions and commit, if any stage has stored its environment."""
    environment = next((r["figures"]["environment"] for r in summary if "environment" in r["figures"]), None)
    return [] if environment is None else [measured_on(environment)]


def targets(summary: Sequence[dict[str, Any]]) -> list[list[str]]:
    """[target, bound, measured, verdict] of all stages."""
    return [target for row in summary for target in row["figures"].get("targets", ())]


def _headline(row: dict[str, Any]) -> str:
    parts = (row["figures"].get("headline"), row["why"] and " ".join(row["why"].split()))
    return _short("; ".join(filter(None, parts)))


def _some(kind: str, lines: list[str]) -> list[str]:
    shown = [_short(f"{kind}: {' '.join(line.split())}") for line in lines[:MOST]]
    return shown + ([f"{kind}: {len(lines) - MOST} more, in summary.json"] if len(lines) > MOST else [])


def _short(line: str) -> str:
    return line if len(line) <= 160 else line[:157] + "..."
