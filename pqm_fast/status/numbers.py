"""Figures of a run: where they stand and where they go."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Direction = Literal["rising", "falling", "steady"]
TREND_SHARE = 0.1  # the part of the run that a trend looks back on
TREND_POINTS = 5  # fewer points show no direction


@dataclass(frozen=True)
class Trend:
    """A figure, and how it changed over the last tenth of the steps so far."""

    last: float
    change: float | None
    """Along the line that fits these points best, from the first to the last of them; None for a single point."""
    since_step: int
    direction: Direction | None
    """rising or falling if the slope of the line is more than twice its standard error. None for fewer than five
    points."""


def points(rows: Iterable[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) of the rows in which the figure `name` is a finite number."""
    return [(row["step"], float(row[name])) for row in rows if is_finite(row.get(name))]


def trend(points: Sequence[tuple[int, float]]) -> Trend | None:
    """The trend of a figure, from (step, value) in the order of steps; None without points. If the last tenth of the
    steps has one point, the one before it counts too."""
    if not points:
        return None
    end, last = points[-1]
    recent = [point for point in points if point[0] > end * (1 - TREND_SHARE)]
    recent = recent if len(recent) > 1 else list(points[-2:])
    steps, values = [step for step, _ in recent], [value for _, value in recent]
    if len(set(steps)) < 2:
        return Trend(last, None, end, None)
    slope, intercept = statistics.linear_regression(steps, values)
    change = slope * (steps[-1] - steps[0])
    if len(recent) < TREND_POINTS:
        return Trend(last, change, steps[0], None)
    squares = sum((value - intercept - slope * step) ** 2 for step, value in recent)
    spread = sum((step - statistics.fmean(steps)) ** 2 for step in steps)
    error = math.sqrt(squares / (len(recent) - 2) / spread)
    direction: Direction = "steady" if abs(slope) <= 2 * error else "rising" if slope > 0 else "falling"
    return Trend(last, change, steps[0], direction)


def is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def duration(seconds: float) -> str:
    """A time in its largest sensible unit."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
