"""A picture: how long ranks wait for each other, and for the network, by their number."""

from pathlib import Path
from typing import Any

from pqm_benchmarks.scaling.cases import BUDGET, GOAL, RANKS, SHAPE
from pqm_benchmarks.scaling.report import one
from pqm_fast.common.files import atomic_file

LAYOUT_COLORS = {"plain": "#1f6fb4", "tree": "#d9a441"}
ACCUMULATION_LINES = {1: ":", 2: "--", 4: "-"}
SHAPE_COLORS = {"Qwen2.5-0.5B": "#7fb2dd", "Qwen2.5-7B": "#1f6fb4", "Qwen2.5-72B": "#8a93a6"}
WAY_LINES = {"nodes": ("-", "all ranks, nodes of 8"), "hybrid": ("--", "within a node"), "alone": (":", "nodes of 1")}


def draw(results: dict[str, Any], folder: Path) -> Path:
    """Writes scaling.png from what `simulate` returns."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (balance, network) = plt.subplots(1, 2, figsize=(11.5, 3.8), layout="constrained")
    for layout, color in LAYOUT_COLORS.items():
        for times, line in ACCUMULATION_LINES.items():
            shares = [
                100 * one(results["idle"], shape=SHAPE, padded=True, layout=layout, accumulation=times, ranks=n)["idle"]
                for n in RANKS
            ]
            name = f"{'trees' if layout == 'tree' else 'plain packing'}, accumulation {times}"
            balance.plot(RANKS, shares, line, color=color, marker="o", markersize=3, label=name)
    balance.axhline(100 * GOAL, color="black", linestyle="-.", linewidth=1)
    balance.annotate("goal", (RANKS[0], 100 * GOAL), (0, 3), textcoords="offset points", fontsize=8)
    balance.set_title(f"Waiting for the slowest rank, {SHAPE}", fontsize=10)
    balance.set_ylabel("% of the time of full steps", fontsize=9)
    for way, (line, words) in WAY_LINES.items():
        for shape, color in SHAPE_COLORS.items():
            shares = [
                100 * one(results["network"], shape=shape, way=way, ranks=n, tokens=BUDGET)["exposed"] for n in RANKS
            ]
            name = f"{shape.removeprefix('Qwen2.5-')}, {words}"
            network.plot(RANKS, shares, line, color=color, marker="o", markersize=3, label=name)
    network.set_title(f"Waiting for the network, {BUDGET:,} tokens a micro-batch", fontsize=10)
    network.set_ylabel("% of a round", fontsize=9)
    network.set_ylim(0, 100)
    for panel in (balance, network):
        panel.set_xscale("log", base=2)
        panel.set_xticks(RANKS, [f"{ranks:,}" for ranks in RANKS])
        panel.set_xlabel("ranks", fontsize=9)
        panel.set_ylim(bottom=0)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    balance.legend(fontsize=8, frameon=False)
    network.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    path = folder / "scaling.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path
