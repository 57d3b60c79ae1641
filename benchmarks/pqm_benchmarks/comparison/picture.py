"""A picture of several ways: a panel for each model, with a bar for each way from the top down."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pqm_benchmarks.comparison.report import Record, Results, by_way
from pqm_fast.common.files import atomic_file

OTHER = ("#8a93a6", "#e07b39", "#d9a441")
BEFORE, ADDED, LOST = "#c6dcef", "#1f6fb4", "#b4372f"

Panel = Callable[[Any, dict[str, Record], list[str]], None]
"""Draws the bars of one model: axes, records by way, all titles from the top down."""


def draw(results: Results, path: Path, heading: str, unit: str, panel: Panel) -> Path:
    """Writes `path` as PNG. The heading is the device, then `heading`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shapes = list(dict.fromkeys(record["shape"] for record in results["records"]))
    titles = list(dict.fromkeys(record["title"] for record in results["records"]))
    figure, axes = plt.subplots(
        1,
        len(shapes),
        figsize=(max(7.0, 2.0 + 2.5 * len(shapes)), 1.4 + 0.34 * len(titles)),  # the heading has to fit
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for model_axes, shape in zip(axes[0], shapes, strict=True):
        panel(model_axes, by_way(results, shape), titles)
        model_axes.set_title(shape, fontsize=10)
        model_axes.margins(x=0.42)
        model_axes.set_xlim(left=0)
        model_axes.set_xlabel(unit, fontsize=9)
        model_axes.tick_params(labelsize=8)
        model_axes.grid(axis="x", alpha=0.3)
        model_axes.set_axisbelow(True)
    axes[0, 0].set_yticks(range(len(titles)), titles, fontsize=9)
    axes[0, 0].invert_yaxis()
    device = results["environment"]["device"] + ("" if results["device"] == "cuda" else " (no GPU figures)")
    figure.suptitle(f"{device}, {results['dtype']}: {heading}", fontsize=10)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path


def label(axes: Any, text: str, end: float, row: int) -> None:
    """Writes `text` after the bar of a row, which ends at `end`."""
    axes.annotate(text, (end, row), (3, 0), textcoords="offset points", va="center", fontsize=8.5)
