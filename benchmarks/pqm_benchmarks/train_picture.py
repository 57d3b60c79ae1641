"""A picture of a train.json: trajectories/s of every way, and what each switch adds, a panel for each model."""

from pathlib import Path
from typing import Any

from pqm_benchmarks.report import short
from pqm_benchmarks.train_report import Record, Results, by_way
from pqm_fast.files import atomic_file

OTHERS = {"reference": "#8a93a6", "trl": "#e07b39", "openrlhf": "#d9a441"}
BEFORE, ADDED, LOST = "#c6dcef", "#1f6fb4", "#b4372f"


def draw(results: Results, folder: Path) -> Path:
    """Writes train_steps.png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shapes = list(dict.fromkeys(record["shape"] for record in results["records"]))
    titles = list(dict.fromkeys(record["title"] for record in results["records"]))
    figure, axes = plt.subplots(
        1,
        len(shapes),
        figsize=(max(7.5, 2.0 + 2.5 * len(shapes)), 1.4 + 0.34 * len(titles)),  # the heading needs 7.5
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for panel, shape in zip(axes[0], shapes, strict=True):
        _panel(panel, by_way(results, shape), titles)
        panel.set_title(shape, fontsize=10)
    axes[0, 0].set_yticks(range(len(titles)), titles, fontsize=9)
    axes[0, 0].invert_yaxis()
    device = results["environment"]["device"] + ("" if results["device"] == "cuda" else " (no GPU figures)")
    figure.suptitle(
        f"{device}, {results['dtype']}: trajectories trained on per second, one switch after the other\n"
        f"made-up data, {results['workload']['tokens'] / results['workload']['trajectories']:.0f} tokens on average, "
        f"tree ratio {results['workload']['tree_ratio']:.1f}",
        fontsize=10,
    )
    path = folder / "train_steps.png"
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path


def _panel(axes: Any, ways: dict[str, Record], titles: list[str]) -> None:
    """Bars from the top down; each of ours starts at the one before it."""
    base, before = ways.get("reference"), 0.0
    for name, record in ways.items():
        rate, place = record["trajectories_per_s"], titles.index(record["title"])
        if name in OTHERS:
            axes.barh(place, rate, 0.72, color=OTHERS[name])
        else:
            axes.barh(place, min(before, rate), 0.72, color=BEFORE)
            axes.barh(place, abs(rate - before), 0.72, left=min(before, rate), color=ADDED if rate > before else LOST)
            before = rate
        times = f"  {rate / base['trajectories_per_s']:.1f}x" if base and record is not base else ""
        label = {"textcoords": "offset points", "va": "center", "fontsize": 8.5}
        axes.annotate(f"{short(rate)}{times}", (max(rate, before), place), (3, 0), **label)
    axes.margins(x=0.42)
    axes.set_xlim(left=0)
    axes.set_xlabel("trajectories/s", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
