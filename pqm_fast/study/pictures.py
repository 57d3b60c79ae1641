"""Pictures of a study: losses by labels and by backbone, the margin, and Best-of-N by N."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pqm_fast.common.files import atomic_file
from pqm_fast.study.tables import select

COLORS = ("#1f6fb4", "#e07b39", "#3c9d5d", "#9256a8", "#b8444f", "#77664f", "#c2a01c", "#4aa5b5")


def draw(found: dict[str, Any], folder: Path) -> list[Path]:
    """Writes losses.png and, where there is something to compare, zeta.png; returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    config = found["config"]
    figure, (points, curves) = plt.subplots(
        1, 2, figsize=(14, 5.2), constrained_layout=True, width_ratios=(2 + len(config["labels"]) / 2, 2.5)
    )
    _losses(points, found)
    _curves(curves, found)
    paths = [_save(figure, folder / "losses.png")]
    zetas = {config["zeta"], *config["zetas"]}
    cells = [cell for cell in select(found, **_first(found), loss="rank", zeta=zetas) if "best_of_n" in cell]
    if len(cells) > 1:
        figure, axes = plt.subplots(figsize=(6, 4.2), constrained_layout=True)
        _zetas(axes, found, sorted(cells, key=lambda cell: cell["zeta"]))
        paths.append(_save(figure, folder / "zeta.png"))
    return paths


def _first(found: dict[str, Any]) -> dict[str, str]:
    return {"model": found["config"]["models"][0], "labels": found["config"]["labels"][0]}


def _colors(found: dict[str, Any]) -> dict[str, str]:
    return dict(zip(found["config"]["losses"], COLORS, strict=False))


def _losses(axes: Any, found: dict[str, Any]) -> None:
    """A group of points for each kind of labels and each further model."""
    config, first, colors = found["config"], _first(found), _colors(found)
    groups = {f"labels\n{text}": select(found, **first | {"labels": text}) for text in config["labels"]}
    groups |= {f"model\n{name}": select(found, **first | {"model": name}) for name in config["models"][1:]}
    width = 0.8 / len(colors)
    for i, (loss, color) in enumerate(colors.items()):
        label: str | None = loss  # of its first point
        for x, cells in enumerate(groups.values()):
            own = next((cell for cell in cells if cell["loss"] == loss and "best_of_n" in cell), None)
            if own is not None:
                place = x + (i - (len(colors) - 1) / 2) * width
                _point(axes, place, own["best_of_n"], color, label)
                label = None
    axes.set_xticks(range(len(groups)), list(groups))
    n, questions = found["pool"]["n"], found["pool"]["questions"]
    axes.set(ylabel=f"best of {n}, mean over policies", title=f"{questions} test questions, 95% intervals")
    axes.grid(axis="y", alpha=0.3)
    if axes.get_legend_handles_labels()[0]:  # none where every training diverged
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4, frameon=False)


def _curves(axes: Any, found: dict[str, Any]) -> None:
    first, colors, ns = _first(found), _colors(found), [1]
    for cell in select(found, **first):
        if "curve" in cell:
            ns = [int(n) for n in cell["curve"]]
            axes.plot(ns, list(cell["curve"].values()), marker="o", markersize=3, color=colors[cell["loss"]])
    policies = found["pool"]["policies"].values()
    vote = sum(own["majority_vote"] for own in policies) / len(policies)
    axes.axhline(vote, color="gray", linestyle=":")
    name = "majority vote of all of a policy's candidates"
    axes.annotate(name, (ns[-1], vote), textcoords="offset points", xytext=(0, 4), ha="right", color="gray")
    axes.set_xscale("log", base=2)
    axes.set_xticks(ns, [str(n) for n in ns])
    axes.set(xlabel="candidates N", ylabel="best of N", title=f"{first['model']}, labels {first['labels']}")
    axes.grid(alpha=0.3)


def _zetas(axes: Any, found: dict[str, Any], cells: Sequence[dict[str, Any]]) -> None:
    config = found["config"]
    for x, cell in enumerate(cells):
        _point(axes, x, cell["best_of_n"], COLORS[0], "rank" if x == 0 else None)
    for cell in select(found, **_first(found), loss=config["baseline"]):
        if "best_of_n" in cell:
            axes.axhline(cell["best_of_n"]["mean"], color="gray", linestyle=":", label=config["baseline"])
    axes.set_xticks(range(len(cells)), [f"{cell['zeta']:g}" for cell in cells])
    where = _first(found)
    axes.set(xlabel="zeta", ylabel=f"best of {found['pool']['n']}, mean over policies")
    axes.set_title(f"{where['model']}, labels {where['labels']}")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)


def _point(axes: Any, x: float, own: dict[str, Any], color: str, label: str | None) -> None:
    low, high = (own["mean"] if own[end] is None else own[end] for end in ("low", "high"))
    axes.vlines(x, low, high, color=color, linewidth=1.5)
    axes.plot([x], [own["mean"]], "o", color=color, markersize=6, label=label)


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path
