"""The figures drawn: Best-of-N curves with their intervals, and what the step scores are worth."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pqm_fast.common.files import atomic_file
from pqm_fast.evaluate.best_of_n import something_to_choose
from pqm_fast.evaluate.step_thresholds import calibrated

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = 12  # of policies; more cannot be read
FEWEST = 10  # correct and wrong steps of a point: with fewer, AUROC is noise
COLORS = {"min": "#1f6fb4", "last": "#e07b39", "mean": "#3c9d5d", "prod": "#9256a8", "max": "#b8444f"}
GREY = "#8a93a6"


def draw(summary: dict[str, Any], out: Path) -> list[Path]:
    """Pictures of what `evaluate` found, beside its file `out`: `NAME.best_of_n.png`, `NAME.steps.png`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = []
    for name, panels in (("best_of_n", _pool_panels(summary)), ("steps", _step_panels(summary))):
        parts = list(panels)
        if not parts:
            continue
        columns = min(len(parts), 4 if len(parts) > 6 else 3)
        rows = -(-len(parts) // columns)
        size = (max(3.9 * columns, 6.0), 3.4 * rows + 0.8)  # inches; read at about 10
        with plt.rc_context({"figure.dpi": 110, "font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
            figure, axes = plt.subplots(
                rows, columns, figsize=size, squeeze=False, constrained_layout=True, sharey=name == "best_of_n"
            )
            for ax in axes.flat[len(parts) :]:
                ax.set_visible(False)
            for ax, part in zip(axes.flat, parts, strict=False):
                part(ax)
                ax.grid(alpha=0.25)
                ax.set_axisbelow(True)
            if name == "best_of_n":
                for ax in axes.flat[: len(parts)][::columns]:
                    ax.set_ylabel("expected accuracy")
                handles, labels = axes.flat[0].get_legend_handles_labels()
                figure.legend(handles, labels, loc="outside lower center", ncols=4 if columns > 1 else 3, frameon=False)
            path = out.with_name(f"{out.stem}.{name}.png")
            with atomic_file(path) as temporary:
                figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.1)
            plt.close(figure)
        drawn.append(path)
    return drawn


def _pool_panels(summary: dict[str, Any]) -> Iterator[Callable[["Axes"], None]]:
    if "overall" not in summary:
        return
    policies = sorted(summary["policies"].items(), key=lambda item: -item[1]["questions"])
    if len(policies) != 1 and something_to_choose(summary["overall"]):  # of one policy it is the same
        shown = f"all {len(policies)} policies" if policies else "all candidates"
        yield lambda ax: _best_of_n(ax, summary["overall"], shown)
    curves = [(name, entry) for name, entry in policies if something_to_choose(entry)]
    for name, entry in curves[: PANELS - 1]:
        yield lambda ax, name=name, entry=entry: _best_of_n(ax, entry, name)  # type: ignore[misc]


def _best_of_n(ax: "Axes", entry: dict[str, Any], title: str) -> None:
    _curve(ax, entry["pass_at_n"], "pass@N", "black", ":")
    for how, own in entry["best_of_n"].items():
        _curve(ax, own, f"best by {how}", COLORS[how], "-")
    # The weighted vote of one aggregator: those of all lie close together.
    how = next(iter(entry["weighted_vote"]), None)
    if how is not None:
        _curve(ax, entry["weighted_vote"][how], f"vote by {how}", COLORS[how], "--")
    _curve(ax, entry["self_consistency"], "vote", GREY, "--")
    ns = [int(n) for n in entry["pass_at_n"]]
    ax.set_xscale("log", base=2)
    ax.set_xticks(ns, [str(n) for n in ns])
    ax.minorticks_off()
    ax.set(title=f"{title} ({entry['questions']} questions)", xlabel="N")


def _curve(ax: "Axes", figures: dict[str, Any], label: str, color: str, style: str) -> None:
    ns = [int(n) for n in figures]
    own = list(figures.values())
    ax.plot(ns, [f["mean"] for f in own], style, color=color, label=label, linewidth=1.8, marker="o", markersize=3)
    if all(f["low"] is not None for f in own):
        ax.fill_between(ns, [f["low"] for f in own], [f["high"] for f in own], color=color, alpha=0.1, linewidth=0)


def _step_panels(summary: dict[str, Any]) -> Iterator[Callable[["Axes"], None]]:
    if summary.get("calibration", {}).get("bins"):
        yield lambda ax: _calibration(ax, summary["calibration"])
    rows = [
        row
        for row in summary.get("auroc_by_position", {}).get("rows", [])
        if min(row["correct"], row["wrong"]) >= FEWEST
    ]
    if rows:
        yield lambda ax: _positions(ax, rows, summary["auroc_by_position"]["all"])
    if "by_type" in summary:
        yield lambda ax: _types(ax, summary["by_type"])


def _calibration(ax: "Axes", found: dict[str, Any]) -> None:
    bins = found["bins"]
    most = max(own["steps"] for own in bins)
    ax.bar(
        [own["low"] for own in bins], [own["steps"] / most for own in bins], 0.1, align="edge", color=GREY, alpha=0.25,
        label=f"steps (highest: {most:,})",
    )  # fmt: skip
    ax.plot([0, 1], [0, 1], ":", color="black", linewidth=1)
    x, y = [own["predicted"] for own in bins], [own["correct"] for own in bins]
    ax.plot(x, y, "-o", color=COLORS["min"], markersize=4, label=f"model (error {found['error']:.3f})")
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


def _types(ax: "Axes", found: dict[str, Any]) -> None:
    types = list(found["types"].items())[::-1]  # the first on top
    # at a fixed threshold they would show where the scores lie, not what they tell apart
    known = any(own[calibrated("accuracy_on_correct")] is not None for _, own in types)
    for offset, key, color in ((0.2, "accuracy_on_correct", "#9cc3e6"), (-0.2, "accuracy_on_wrong", COLORS["min"])):
        values = [own[calibrated(key) if known else key] or 0.0 for _, own in types]
        ax.barh(
            [i + offset for i in range(len(types))],
            values,
            0.38,
            color=color,
            label=key[9:].replace("_", " ") + " steps",
        )
    ax.set_yticks(range(len(types)), [name.replace("_", " ") for name, _ in types])
    ax.set(xlim=(0, 1), xlabel="share of steps judged right")
    ax.set_title(f"Accuracy by {found['field'].replace('_', ' ')}, {'calibrated' if known else 'fixed threshold'}")
    _legend_below(ax)


def _legend_below(ax: "Axes") -> None:
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), frameon=False, fontsize=10)
