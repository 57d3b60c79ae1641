"""Draws Best-of-N by N for each loss, a panel for each pool and policy."""

from pathlib import Path
from typing import Any

from pqm_fast.common.pictures import line_styles, save

COLUMNS = 3
YARDSTICKS = {"vote": ("majority vote", "--"), "any": ("any is right (pass@N)", ":")}


def draw(results: dict[str, Any], folder: Path) -> Path:
    """Writes best_of_n.png: the expectation over all samples of N, with its interval; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    entries = {
        f"{pool}\n{policy}, {entry['questions']} questions": entry
        for pool, policies in results["pools"].items()
        for policy, entry in policies.items()
    }
    columns = min(len(entries), COLUMNS)
    rows = -(-len(entries) // columns)
    size = (max(4.4 * columns, 6.0), 3.6 * rows + 0.9)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, constrained_layout=True)
    for ax in axes.flat[len(entries) :]:
        ax.set_visible(False)
    for ax, (title, entry) in zip(axes.flat, entries.items(), strict=False):
        _panel(ax, title, entry)
    for ax in axes[:, 0]:
        ax.set_ylabel("share of questions solved")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4 if columns > 1 else 2, frameon=False)
    return save(figure, folder / "best_of_n.png")


def _panel(ax: Any, title: str, entry: dict[str, Any]) -> None:
    ns = [int(n) for n in entry["any"]["expected"]]
    for name, style in line_styles(entry["losses"]).items():
        figures = entry["losses"][name]
        by_n = figures["best_of_n"]["expected"].values()
        means, lows, highs = ([figure[key] for figure in by_n] for key in ("mean", "low", "high"))
        ax.plot(ns, means, label=figures["title"], markersize=4, **style)
        if None not in lows:
            ax.fill_between(ns, lows, highs, color=style["color"], alpha=0.08, linewidth=0)
    for name, (label, dashes) in YARDSTICKS.items():
        ax.plot(ns, [figure["mean"] for figure in entry[name]["expected"].values()], dashes, label=label, color="gray")
    ax.set_xscale("log", base=2)
    ax.set_xticks(ns, [str(n) for n in ns])
    ax.minorticks_off()
    ax.set(title=title, xlabel="N")
    ax.grid(alpha=0.3)
