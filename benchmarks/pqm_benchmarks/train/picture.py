"""A picture of a train.json: a panel for each model with trajectories/s of every way, and what each switch adds."""

from pathlib import Path
from typing import Any

from pqm_benchmarks.comparison import picture
from pqm_benchmarks.comparison.picture import ADDED, BEFORE, LOST, OTHER
from pqm_benchmarks.comparison.report import Record, Results
from pqm_benchmarks.shared.text import short
from pqm_benchmarks.train.report import OURS

OTHERS = dict(zip(("reference", "trl", "openrlhf"), OTHER, strict=True))


def draw(results: Results, folder: Path) -> Path:
    """Writes train_steps.png."""
    workload = results["workload"]
    heading = (
        "trajectories trained on per second\n"
        f"made-up data, {workload['tokens'] / workload['trajectories']:.0f} tokens on average, "
        f"tree ratio {workload['tree_ratio']:.1f}"
    )
    return picture.draw(results, folder / "train_steps.png", heading, "trajectories/s", _panel)


def _panel(axes: Any, ways: dict[str, Record], titles: list[str]) -> None:
    """The bar of each of our ways starts at the way before it, if none is left out between them."""
    base, before = ways.get("reference"), 0.0
    ours = [name for name in ways if name in OURS]
    one_by_one = ours == list(OURS[: len(ours)])
    for name, record in ways.items():
        rate, row = record["trajectories_per_s"], titles.index(record["title"])
        end = rate
        if name in OTHERS:
            axes.barh(row, rate, 0.72, color=OTHERS[name])
        else:
            low, end = sorted((before, rate))
            axes.barh(row, low, 0.72, color=BEFORE)
            axes.barh(row, end - low, 0.72, left=low, color=ADDED if rate > before else LOST)
            before = rate if one_by_one else 0.0
        times = f"  {rate / base['trajectories_per_s']:.1f}x" if base and record is not base else ""
        picture.label(axes, f"{short(rate)}{times}", end, row)
