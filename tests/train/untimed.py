"""The metrics that are equal in two runs that do the same."""

from pathlib import Path
from typing import Any

from pqm_fast.train.metrics_file import read_metrics

TIMES = {"tokens_per_second", "trajectories_per_second", "eta_seconds"}


def untimed(metrics: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl without the figures that depend on time."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(metrics)]
