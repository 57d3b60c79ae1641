"""Draws a probe study: every loss beside the baseline on each test, and the layers that heads read."""

from pathlib import Path
from typing import Any

from pqm_fast.common.pictures import line_styles, save
from pqm_fast.study.markdown import Figure

Results = dict[str, Any]
PANELS = {
    ("steps", "auroc"): "AUROC of steps",
    ("steps", "pair_accuracy"): "pairs in order within a solution",
    ("first_errors", "f1"): "F1 on ProcessBench",
    ("pool", "best_of_n"): "best of N",
}


def draw(results: Results, folder: Path) -> list[Path]:
    """Writes losses.png and layers.png; returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [key for key in PANELS if results["cells"][0]["figures"][key[0]].get(key[1])]
    losses = list(dict.fromkeys(cell["loss"] for cell in results["cells"]))
    kinds = results["config"]["labels"]
    figure, panels = plt.subplots(
        1, len(shown), figsize=(3.4 * len(shown) + 1.5, 0.32 * len(losses) + 1.6), sharey=True, squeeze=False,
        constrained_layout=True,
    )  # fmt: skip
    styles = line_styles(kinds)
    for axes, (test, name) in zip(panels[0], shown, strict=True):
        for i, kind in enumerate(kinds):
            cells = {cell["loss"]: cell for cell in results["cells"] if cell["labels"] == kind}
            places = [losses.index(loss) + (i - (len(kinds) - 1) / 2) * 0.18 for loss in losses]
            _points(axes, places, [cells[loss]["figures"][test][name] for loss in losses], styles[kind], kind)
        for control, dashes in zip(results["controls"], (":", "--", "-."), strict=False):
            if value := control["figures"][test].get(name):
                axes.axvline(value["mean"], color="grey", linestyle=dashes, label=control["name"].partition(" ")[0])
        if test == "pool":
            axes.axvline(results["pool"]["yardsticks"]["majority vote"]["mean"], color="black", label="vote")
        axes.set_title(PANELS[test, name], fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    panels[0][0].set_yticks(range(len(losses)), losses)
    panels[0][0].invert_yaxis()
    handles: dict[str, Any] = {}
    for axes in panels[0]:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=8, frameon=False, fontsize=9)
    paths = [save(figure, folder / "losses.png")]
    if tried := [cell for cell in results["cells"] if len(cell["layers"]) > 1]:
        figure, axes = plt.subplots(figsize=(7.5, 4.6), constrained_layout=True)
        for cell, style in zip(tried, line_styles([cell["loss"] for cell in tried]).values(), strict=True):
            layers = [int(layer) for layer in cell["layers"]]
            axes.plot(layers, list(cell["layers"].values()), label=cell["loss"], markersize=4, **style)
        axes.set(xlabel="decoder layer that the head reads", ylabel="AUROC of steps, tuning questions")
        axes.set_xticks(layers)
        axes.grid(axis="y", alpha=0.3)
        figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
        paths.append(save(figure, folder / "layers.png"))
    return paths


def _points(axes: Any, places: list[float], figures: list[Figure | None], style: dict[str, Any], label: str) -> None:
    known = [(place, figure) for place, figure in zip(places, figures, strict=True) if figure]
    # a single question has no interval
    ends = [[abs((figure[end] or figure["mean"]) - figure["mean"]) for _, figure in known] for end in ("low", "high")]
    axes.errorbar(
        [figure["mean"] for _, figure in known],
        [place for place, _ in known],
        xerr=ends,
        linestyle="none",
        markersize=4,
        elinewidth=1,
        label=label,
        marker=style["marker"],
        color=style["color"],
    )
