"""Whether a run is in good health: steps left out, the gradient, numbers that are not finite."""

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Any

from pqm_fast.status.files import RunFiles
from pqm_fast.status.numbers import TREND_SHARE, duration, is_finite, points
from pqm_fast.status.state import LONG, State

LARGE_GRADIENT = 10.0  # times its median
MANY_SKIPPED = 0.05  # of the last tenth of the steps


@dataclass(frozen=True)
class Health:
    skipped: dict[str, int]
    """Optimizer steps that were left out, by reason."""
    last_skipped: int | None
    """The last such step."""
    grad_norm: float | None
    grad_norm_median: float | None
    """Over the whole run."""
    not_finite: int
    """Rows whose loss or gradient norm is not finite."""
    peak_memory_gb: float | None
    warnings: list[str]


def find_health(files: RunFiles, state: State, step: int, now: float) -> Health:
    """`step`: steps so far; `now`: UNIX seconds."""
    skipped = [row for row in files.rows if row["kind"] == "skipped"]
    train = [row for row in files.rows if row["kind"] == "train"]
    norms = [norm for _, norm in points(train, "grad_norm")]
    memory = [used for _, used in points(train, "peak_memory_gb")]
    median = statistics.median(norms) if norms else None
    not_finite = sum(
        any(isinstance(row.get(name), float) and not is_finite(row[name]) for name in ("loss", "grad_norm"))
        for row in files.rows
    )
    warnings = [f"{name} is incomplete: {missing}" for name, missing in files.incomplete.items()]
    if not_finite:
        warnings.append(f"{not_finite} rows of metrics.jsonl hold a loss or gradient norm that is not finite")
    if median and norms[-1] > LARGE_GRADIENT * median:
        warnings.append(f"the gradient norm is {norms[-1] / median:.0f} times its median")
    lately = sum(row["step"] > step * (1 - TREND_SHARE) for row in skipped)
    if lately > max(1.0, MANY_SKIPPED * TREND_SHARE * step):
        warnings.append(f"{lately} of the last {max(lately, round(TREND_SHARE * step)):,} steps were left out")
    if state == "running" and now - files.last_change > LONG:
        warnings.append(f"no file was changed for {duration(now - files.last_change)}")
    return Health(
        skipped=dict(Counter(_reason(row) for row in skipped)),
        last_skipped=skipped[-1]["step"] if skipped else None,
        grad_norm=norms[-1] if norms else None,
        grad_norm_median=median,
        not_finite=not_finite,
        peak_memory_gb=max(memory, default=None),
        warnings=warnings,
    )


def _reason(row: dict[str, Any]) -> str:
    return str(row.get("reason", "no reason given"))
