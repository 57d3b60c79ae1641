"""A picture of a score.json: a panel for each model with solutions/s of every way."""

from pathlib import Path
from typing import Any

from pqm_benchmarks.comparison import picture
from pqm_benchmarks.comparison.picture import ADDED, BEFORE, OTHER
from pqm_benchmarks.comparison.report import Record, Results
from pqm_benchmarks.shared.text import short

OTHERS = {"published": OTHER[0], "padded": OTHER[1]}


def draw(results: Results, folder: Path) -> Path:
    """Writes scoring.png."""
    workload = results["workload"]
    heading = (
        f"solutions scored per second, {workload['trajectories'] // workload['questions']} to a question\n"
        f"made-up data, {workload['tokens'] / workload['trajectories']:.0f} tokens on average, tree ratio "
        f"{workload['tree_ratio']:.2f}; pale: with batches made before"
    )
    return picture.draw(results, folder / "scoring.png", heading, "solutions/s", _panel)


def _panel(axes: Any, ways: dict[str, Record], titles: list[str]) -> None:
    base = ways.get("published")
    for name, record in ways.items():
        rate, ahead, row = record["solutions_per_s"], record["ahead_solutions_per_s"], titles.index(record["title"])
        axes.barh(row, ahead, 0.72, color=BEFORE)
        axes.barh(row, rate, 0.72, color=OTHERS.get(name, ADDED))
        times = f"  {rate / base['solutions_per_s']:.1f}x" if base and record is not base else ""
        picture.label(axes, f"{short(rate)}{times}", max(rate, ahead), row)
