"""Draws pictures of an evaluation: Best-of-N curves with their intervals, and the quality of the step scores."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pqm_fast.common.files import atomic_file
from pqm_fast.evaluate.best_of_n import something_to_choose
from pqm_fast.evaluate.step_thresholds import calibrated

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = 12  # the most panels for policies; more are too small to read
FEWEST = 10  # correct and wrong steps for a point of the curve: with fewer, AUROC is noise
COLORS = {
    "min": "#1f6fb4",
    "last": "#e07b39",
    "mean": "#3c9d5d",
    "softmin": "#c2a01c",
    "prod": "#9256a8",
    "max": "#b8444f",
}
GREY = "#8a93a6"


def draw(summary: dict[str, Any], out: Path) -> list[Path]:
    """Draws the results of `evaluate` beside their file `out`, as `NAME.best_of_n.png` and `NAME.steps.png`.

    Returns the paths of the pictures that the results have figures for.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    paths = []
    for name, panels in (("best_of_n", _pool_panels(summary)), ("steps", _step_panels(summary))):
        panel_functions = list(panels)
        if not panel_functions:
            continue
        columns = min(len(panel_functions), 4 if len(panel_functions) > 6 else 3)
        rows = -(-len(panel_functions) // columns)
        size = (max(3.9 * columns, 6.0), 3.4 * rows + 0.8)  # inches; shown about 10 wide
        with plt.rc_context({"figure.dpi": 110, "font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
            figure, axes = plt.subplots(
                rows, columns, figsize=size, squeeze=False, constrained_layout=True, sharey=name == "best_of_n"
            )
            for ax in axes.flat[len(panel_functions) :]:
                ax.set_visible(False)
            for ax, draw_panel in zip(axes.flat, panel_functions, strict=False):
                draw_panel(ax)
                ax.grid(alpha=0.25)
                ax.set_axisbelow(True)
            if name == "best_of_n":
                for ax in axes.flat[: len(panel_functions)][::columns]:
                    ax.set_ylabel("expected accuracy")
                handles, labels = axes.flat[0].get_legend_handles_labels()
                figure.legend(handles, labels, loc="outside lower center", ncols=4 if columns > 1 else 3, frameon=False)
            path = out.with_name(f"{out.stem}.{name}.png")
            with atomic_file(path) as temporary:
                figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.1)
            plt.close(figure)
        paths.append(path)
    return paths


def _pool_panels(summary: dict[str, Any]) -> Iterator[Callable[["Axes"], None]]:
    if "overall" not in summary:
        return
    policies = sorted(summary["policies"].items(), key=lambda item: -item[1]["questions"])
    if len(policies) != 1 and something_to_choose(summary["overall"]):  # one policy would have the same curve
        title = f"all {len(policies)} policies" if policies else "all candidates"
        yield lambda ax: _best_of_n(ax, summary["overall"], title)
    curves = [(name, entry) for name, entry in policies if something_to_choose(entry)]
    for name, entry in curves[: PANELS - 1]:
        yield lambda ax, name=name, entry=entry: _best_of_n(ax, entry, name)  # type: ignore[misc]


def _best_of_n(ax: "Axes", entry: dict[str, Any], title: str) -> None:
    _curve(ax, entry["pass_at_n"], "pass@N", "black", ":")
    for aggregator, by_n in entry["best_of_n"].items():
        _curve(ax, by_n, f"best by {aggregator}", COLORS[aggregator], "-")
    # The weighted vote of one aggregator only: all of them lie close together.
    aggregator = next(iter(entry["weighted_vote"]), None)
    if aggregator is not None:
        _curve(ax, entry["weighted_vote"][aggregator], f"vote by {aggregator}", COLORS[aggregator], "--")
    _curve(ax, entry["self_consistency"], "vote", GREY, "--")
    ns = [int(n) for n in entry["pass_at_n"]]
    ax.set_xscale("log", base=2)
    ax.set_xticks(ns, [str(n) for n in ns])
    ax.minorticks_off()
    ax.set(title=f"{title} ({entry['questions']} questions)", xlabel="N")


def _curve(ax: "Axes", by_n: dict[str, Any], label: str, color: str, style: str) -> None:
    ns, figures = [int(n) for n in by_n], list(by_n.values())
    means, lows, highs = ([figure[key] for figure in figures] for key in ("mean", "low", "high"))
    ax.plot(ns, means, style, color=color, label=label, linewidth=1.8, marker="o", markersize=3)
    if None not in lows:
        ax.fill_between(ns, lows, highs, color=color, alpha=0.1, linewidth=0)


def _step_panels(summary: dict[str, Any]) -> Iterator[Callable[["Axes"], None]]:
    if summary.get("calibration", {}).get("bins"):
        yield lambda ax: _calibration(ax, summary["calibration"], summary.get("probabilities", {}).get("bins", []))
    rows = [
        row
        for row in summary.get("auroc_by_position", {}).get("rows", [])
        if min(row["correct"], row["wrong"]) >= FEWEST
    ]
    if rows:
        yield lambda ax: _positions(ax, rows, summary["auroc_by_position"]["all"])
    if "by_type" in summary:
        yield lambda ax: _types(ax, summary["by_type"])


def _calibration(ax: "Axes", curve: dict[str, Any], scaled_bins: list[dict[str, Any]]) -> None:
    low, steps, predicted, correct = (
        [entry[key] for entry in curve["bins"]] for key in ("low", "steps", "predicted", "correct")
    )
    largest_count = max(steps)
    shares = [count / largest_count for count in steps]
    ax.bar(low, shares, 0.1, align="edge", color=GREY, alpha=0.25, label=f"steps (highest: {largest_count:,})")
    ax.plot([0, 1], [0, 1], ":", color="black", linewidth=1)
    label = f"model (error {curve['error']:.3f})"
    ax.plot(predicted, correct, "-o", color=COLORS["min"], markersize=4, label=label)
    if scaled_bins:
        points = ([entry[key] for entry in scaled_bins] for key in ("predicted", "correct"))
        ax.plot(*points, "--s", color=COLORS["last"], markersize=4, label="after Platt scaling")
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="sigmoid(q)", ylabel="share of correct steps")
    ax.set_title("Calibration")
    _legend_below(ax)


def _positions(ax: "Axes", rows: list[dict[str, Any]], overall: dict[str, Any]) -> None:
    names = [str(r["first"]) if r["first"] == r["last"] else f"{r['first']}-{r['last']}" for r in rows]
    x = range(len(rows))
    ax.plot(
        x,
        [r["auroc"] for r in rows],
        "-o",
        color=COLORS["min"],
        markersize=4,
        label=f"model (all steps {overall['auroc']:.3f})",
    )
    ax.plot(x, [r["position_only"] for r in rows], "--o", color=GREY, markersize=4, label="position only")
    ax.plot(x, [r["length_only"] for r in rows], ":s", color=GREY, markersize=4, label="length only")
    ax.axhline(0.5, color="black", linewidth=1, linestyle=":")
    ax.set_xticks(list(x), names, rotation=45 if len(names) > 5 else 0)
    ax.set(
        ylim=(min(0.4, *(min(r["auroc"], r["position_only"], r["length_only"]) - 0.05 for r in rows)), 1.02),
        xlabel="step",
    )
    ax.set_title("AUROC by position")
    _legend_below(ax)


def _types(ax: "Axes", by_type: dict[str, Any]) -> None:
    types = list(by_type["types"].items())[::-1]  # the first on top
    # accuracies at a fixed threshold would show the level of the scores, not what the scores tell apart
    is_calibrated = any(figures[calibrated("accuracy_on_correct")] is not None for _, figures in types)
    for offset, key, color in ((0.2, "accuracy_on_correct", "#9cc3e6"), (-0.2, "accuracy_on_wrong", COLORS["min"])):
        values = [figures[calibrated(key) if is_calibrated else key] or 0.0 for _, figures in types]
        ax.barh(
            [i + offset for i in range(len(types))],
            values,
            0.38,
            color=color,
            label=key[9:].replace("_", " ") + " steps",
        )
    ax.set_yticks(range(len(types)), [name.replace("_", " ") for name, _ in types])
    ax.set(xlim=(0, 1), xlabel="share of steps judged right")
    ax.set_title(
        f"Accuracy by {by_type['field'].replace('_', ' ')}, {'calibrated' if is_calibrated else 'fixed threshold'}"
    )
    _legend_below(ax)


def _legend_below(ax: "Axes") -> None:
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), frameon=False, fontsize=10)
