"""Markdown tables and the figures in them."""

from collections.abc import Sequence
from typing import Any

Figure = dict[str, Any]
"""{mean, low, high}; the ends of the interval are None where there is none."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def interval(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    if figure["low"] is None:
        return f"{figure['mean']:.3f}"
    return f"{figure['mean']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def difference(figure: Figure | None) -> str:
    """With signs, and bold where the interval excludes 0."""
    if figure is None:
        return "-"
    if figure["low"] is None:
        return f"{figure['mean']:+.3f}"
    text = f"{figure['mean']:+.3f} ({figure['low']:+.3f} to {figure['high']:+.3f})"
    return f"**{text}**" if figure["low"] > 0 or figure["high"] < 0 else text
