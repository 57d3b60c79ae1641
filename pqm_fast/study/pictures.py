"""Draws pictures of a study: losses by labels and by backbone, Best-of-N by N, and rank by zeta."""

from collections.abc import Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

from pqm_fast.common.files import atomic_file
from pqm_fast.study.markdown import Figure
from pqm_fast.study.select import Entry, Results, base, base_cells, base_title, select

MARKERS = "osD^v"  # another one for the losses after each eight
COLORS = ("#1f6fb4", "#e07b39", "#3c9d5d", "#9256a8", "#b8444f", "#77664f", "#c2a01c", "#4aa5b5")


def draw(results: Results, folder: Path) -> list[Path]:
    """Writes losses.png and, where rank has several zetas, zeta.png; returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    config = results["config"]
    figure, (points, curves) = plt.subplots(
        1, 2, figsize=(14, 5.2), constrained_layout=True, width_ratios=(2 + len(config["labels"]) / 2, 2.5)
    )
    _losses(points, results)
    _curves(curves, results)
    paths = [save(figure, folder / "losses.png")]
    cells = base_cells(results, loss="rank", zeta={config["zeta"], *config["zetas"]})
    if len(cells) > 1:
        figure, axes = plt.subplots(figsize=(6, 4.2), constrained_layout=True)
        _zetas(axes, results, sorted(cells, key=lambda cell: cell["zeta"]))
        paths.append(save(figure, folder / "zeta.png"))
    return paths


def _styles(results: Results) -> dict[str, dict[str, Any]]:
    """The colour and the marker of each loss."""
    styles = cycle(product(MARKERS, COLORS))
    return {
        loss: {"marker": marker, "color": color}
        for loss, (marker, color) in zip(results["config"]["losses"], styles, strict=False)
    }


def _legend_name(results: Results, loss: str) -> str:
    """The loss, and for a combination the weights that were chosen."""
    weights = [cell.get("compare_weight") for cell in results["cells"] if cell["loss"] == loss]
    texts = sorted({f"{weight:g}" for weight in weights if weight is not None}, key=float)
    return f"{loss} (weight {', '.join(texts)})" if texts else loss


def _losses(axes: Any, results: Results) -> None:
    """A group of points for each kind of labels and each further model."""
    config, styles = results["config"], _styles(results)
    groups = {f"labels\n{kind}": select(results, **base(results) | {"labels": kind}) for kind in config["labels"]}
    groups |= {f"model\n{name}": select(results, **base(results) | {"model": name}) for name in config["models"][1:]}
    width = 0.8 / len(styles)
    for i, (loss, style) in enumerate(styles.items()):
        label: str | None = _legend_name(results, loss)  # only the first point of a loss has an entry in the legend
        for group, cells in enumerate(groups.values()):
            cell = next((cell for cell in cells if cell["loss"] == loss and "best_of_n" in cell), None)
            if cell is not None:
                x = group + (i - (len(styles) - 1) / 2) * width
                _point(axes, x, cell["best_of_n"], style, label)
                label = None
    axes.set_xticks(range(len(groups)), list(groups))
    n, questions = results["pool"]["n"], results["pool"]["questions"]
    axes.set(ylabel=f"best of {n}, mean over policies", title=f"{questions} test questions, 95% intervals")
    axes.grid(axis="y", alpha=0.3)
    if axes.get_legend_handles_labels()[0]:  # there are none where every training diverged
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4, frameon=False)


def _curves(axes: Any, results: Results) -> None:
    styles, ns = _styles(results), [1]
    for cell in base_cells(results):
        ns = [int(n) for n in cell["curve"]]
        axes.plot(ns, list(cell["curve"].values()), markersize=3, **styles[cell["loss"]])
    policies = results["pool"]["policies"].values()
    vote = sum(figures["majority_vote"] for figures in policies) / len(policies)
    axes.axhline(vote, color="gray", linestyle=":")
    name = "majority vote of all of a policy's candidates"
    axes.annotate(name, (ns[-1], vote), textcoords="offset points", xytext=(0, 4), ha="right", color="gray")
    axes.set_xscale("log", base=2)
    axes.set_xticks(ns, [str(n) for n in ns])
    axes.set(xlabel="candidates N", ylabel="best of N", title=base_title(results))
    axes.grid(alpha=0.3)


def _zetas(axes: Any, results: Results, cells: Sequence[Entry]) -> None:
    baseline = results["config"]["baseline"]
    for x, cell in enumerate(cells):
        _point(axes, x, cell["best_of_n"], {"color": COLORS[0], "marker": "o"}, "rank" if x == 0 else None)
    for cell in base_cells(results, loss=baseline):
        axes.axhline(cell["best_of_n"]["mean"], color="gray", linestyle=":", label=baseline)
    axes.set_xticks(range(len(cells)), [f"{cell['zeta']:g}" for cell in cells])
    axes.set(xlabel="zeta", ylabel=f"best of {results['pool']['n']}, mean over policies")
    axes.set_title(base_title(results))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)


def _point(axes: Any, x: float, figure: Figure, style: dict[str, Any], label: str | None) -> None:
    low, high = (figure["mean"] if figure[end] is None else figure[end] for end in ("low", "high"))
    axes.vlines(x, low, high, color=style["color"], linewidth=1.5)
    axes.plot([x], [figure["mean"]], linestyle="", markersize=6, label=label, **style)


def save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path
