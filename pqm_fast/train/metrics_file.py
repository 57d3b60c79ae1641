"""Reads metrics.jsonl, the figures of a run: one JSON object a line."""

import io
import json
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
START = "start"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl that are about steps, each with its `kind` (train, eval or skipped) and `step`. Lines
    that are damaged, cut off or something else are skipped."""
    return [row for _, row in read_lines(path) if is_metrics(row)]


def read_starts(path: Path) -> list[dict[str, Any]]:
    """The rows that record each start of the run, also when it was resumed."""
    return [row for _, row in read_lines(path) if is_start(row)]


def held_out_losses(path: Path) -> dict[int, float]:
    """The held-out loss of each step that was evaluated."""
    rows = [row for row in read_metrics(path) if row["kind"] == "eval"]
    return {row["step"]: row["loss"] for row in rows if isinstance(row.get("loss"), int | float)}


def read_lines(path: Path) -> list[tuple[bytes, Any]]:
    """Every line that is not empty, with its line feed, and its value: None if the line is not JSON."""
    lines: list[tuple[bytes, Any]] = []
    for line in io.BytesIO(path.read_bytes()) if path.exists() else ():
        if line.strip():
            try:
                lines.append((line, json.loads(line.decode("utf-8"))))
            except (ValueError, RecursionError):
                lines.append((line, None))
    return lines


def is_metrics(row: Any) -> bool:
    return _is_row(row) and row["kind"] != START


def is_start(row: Any) -> bool:
    return _is_row(row) and row["kind"] == START


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("kind"), str) and type(row.get("step")) is int
