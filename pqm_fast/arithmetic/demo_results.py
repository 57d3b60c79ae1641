"""The demo's results: figures per policy, a table of them, and a picture of Best-of-16 against majority vote.

`results` is {loss: {"policies": {policy: {figure: value}}, "training_seconds", "runs"}}, where each value is the mean
over the training seeds and `runs` has the figures of each seed.
"""

from pathlib import Path
from typing import Any

from pqm_fast.common.files import atomic_file

FIGURES = ("mean_accuracy", "majority_vote", "best_of_16", "pass_at_16")


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The results of one loss, from one run per training seed."""
    return {
        "runs": runs,
        "training_seconds": _mean([run["training_seconds"] for run in runs]),
        "policies": {
            policy: {figure: _mean([run["policies"][policy][figure] for run in runs]) for figure in FIGURES}
            for policy in runs[0]["policies"]
        },
    }


def results_table(results: dict[str, Any]) -> str:
    """One row per policy and one with their averages, one Best-of-16 column per loss, and the training times."""
    losses = list(results)
    yardsticks = results[losses[0]]["policies"]  # only Best-of-16 depends on the loss
    header = [
        "policy",
        "mean accuracy",
        "majority vote",
        *(f"best of 16, {loss}" for loss in losses),
        "any of 16 right",
    ]
    rows = [header]
    for policy, figures in yardsticks.items():
        best = [f"{results[loss]['policies'][policy]['best_of_16']:.3f}" for loss in losses]
        rows.append(
            [
                policy,
                f"{figures['mean_accuracy']:.3f}",
                f"{figures['majority_vote']:.3f}",
                *best,
                f"{figures['pass_at_16']:.3f}",
            ]
        )
    averages = [_mean([float(row[i]) for row in rows[1:]]) for i in range(1, len(header))]
    rows.append(["average", *(f"{average:.3f}" for average in averages)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    seconds = ", ".join(f"{loss} {results[loss]['training_seconds']:.0f} s" for loss in losses)
    return "\n".join([*lines, f"training: {seconds}"])


def draw_best_of_16(folder: Path, results: dict[str, Any], seeds: int) -> Path:
    """Draws the bars of every policy into `folder`, and returns the path. `seeds`: the number of training seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    losses = list(results)
    yardsticks = results[losses[0]]["policies"]  # only Best-of-16 depends on the loss
    series = {
        "mean accuracy": ("#c5c9d3", [figures["mean_accuracy"] for figures in yardsticks.values()]),
        "majority vote of 16": ("#8a93a6", [figures["majority_vote"] for figures in yardsticks.values()]),
    }
    colors = ("#1f6fb4", "#e07b39", "#3c9d5d", "#9256a8", "#b8444f", "#77664f", "#c2a01c", "#4aa5b5")
    for loss, color in zip(losses, colors, strict=False):
        best = [figures["best_of_16"] for figures in results[loss]["policies"].values()]
        series[f"best of 16 by Q-value ({loss})"] = (color, best)
    figure, axes = plt.subplots(figsize=(10, 4.4), constrained_layout=True)
    width = 0.8 / len(series)
    for i, (name, (color, values)) in enumerate(series.items()):
        axes.bar([x + i * width for x in range(len(values))], values, width, label=name, color=color)
    centre = 0.4 - width / 2
    for x, figures in enumerate(yardsticks.values()):
        left, right = x + centre - 0.42, x + centre + 0.42
        axes.hlines(figures["pass_at_16"], left, right, color="black", linewidth=1, linestyle=":")
    axes.plot([], [], color="black", linewidth=1, linestyle=":", label="any of 16 right")
    axes.set_xlim(-0.4, len(yardsticks) - 0.2)
    axes.set_xticks([x + centre for x in range(len(yardsticks))], list(yardsticks))
    axes.set(ylim=(0, 1.02), ylabel="held-out problems solved", xlabel="policy that wrote the solutions")
    axes.set_title(f"Arithmetic world, mean over {seeds} training seed{'s' * (seeds > 1)} (mixed: not in training)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False, fontsize=9)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    path = folder / "best_of_16.png"
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
