"""Pictures of a kernels.json: percent of copy bandwidth, and speed-up over the other implementations."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pqm_benchmarks.kernels.report import NAMES, TARGETS, Record, Results
from pqm_benchmarks.shared.text import short
from pqm_fast.common.files import atomic_file

COLORS = {
    "published": "#c5c9d3",
    "eager": "#8a93a6",
    "compiled": "#e07b39",
    "fused": "#1f6fb4",
    "fused-sorting": "#7fb2dd",
}
LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
PASSES = ("forward", "forward+backward")
OTHERS = ("published", "eager", "compiled")


def draw(results: Results, folder: Path) -> list[Path]:
    """Writes kernels_bandwidth.png and, if `fused` was compared with anything, kernels_speedup.png."""
    names = {record["implementation"] for record in results["records"]}
    drawn = [_draw_bandwidth(results, folder / "kernels_bandwidth.png")]
    if "fused" in names and names & set(OTHERS):
        drawn.append(_draw_speedup(results, folder / "kernels_speedup.png"))
    return drawn


def _draw_bandwidth(results: Results, path: Path) -> Path:
    records = _of_size(results, "bandwidth")
    names = [name for name in NAMES if any(record["implementation"] == name for record in records)]

    def panel(axes: Any, norm: bool, passed: str) -> None:
        shown = [r for r in records if r["norm"] == norm and r["pass"] == passed]
        _bars(axes, shown, names, lambda record, _: record["percent_of_copy"], lambda v: short(v, 2))
        axes.margins(y=0.14)
        for target in (target for target in TARGETS if target.unit == "%"):
            if results["device"] == "cuda" and records[0]["size"] in target.sizes and passed in target.passes:
                axes.axhline(target.bound, color="black", linewidth=1, linestyle=":", label="target on an H200")
        if results["device"] == "cuda":
            axes.set_ylim(0, 112)
        axes.set_ylabel("% of copy bandwidth")

    title = (
        f"{_device(results)}\nthe fewest bytes that must move over {_clock(results)}, against a plain copy "
        f"({short(results['copy_gb_s'])} GB/s)\n{_batch(records[0], results)}"
    )
    return _figure(records, panel, PASSES, title, path)


def _draw_speedup(results: Results, path: Path) -> Path:
    records = [r for r in _of_size(results, "training") if r["pass"] == "forward+backward"]
    names = [name for name in OTHERS if any(record["implementation"] == name for record in records)]
    clocks = ("wall_us", "gpu_us") if results["device"] == "cuda" else ("wall_us",)

    def panel(axes: Any, norm: bool, clock: str) -> None:
        shown = [r for r in records if r["norm"] == norm]
        fused = {r["width"]: r[clock] for r in shown if r["implementation"] == "fused"}
        _bars(axes, shown, names, lambda record, width: record[clock] / fused[width], lambda v: short(v) + "x")
        axes.axhline(1, color="black", linewidth=1, linestyle=":", label="pqm-fast")
        axes.margins(y=0.14)
        axes.set_ylabel("time over that of pqm-fast")

    fused_cases = {(r["norm"], r["width"]) for r in records if r["implementation"] == "fused"}
    records = [r for r in records if (r["norm"], r["width"]) in fused_cases]
    title = f"{_device(results)}\nforward + backward, time over that of pqm-fast\n{_batch(records[0], results)}"
    return _figure(records, panel, clocks, title, path)


def _figure(
    records: Sequence[Record], panel: Callable[[Any, bool, str], None], columns: Sequence[str], title: str, path: Path
) -> Path:
    """A panel for each of `columns`, in one row without norm and one with it, as far as they were measured."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = {"forward+backward": "forward + backward", "wall_us": "wall time with launches", "gpu_us": "GPU time"}
    norms = sorted({record["norm"] for record in records})
    figure, grid = plt.subplots(
        len(norms),
        len(columns),
        figsize=(5.6 * len(columns), 2.9 * len(norms) + 1.1),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for row, norm in zip(grid, norms, strict=True):
        for axes, column in zip(row, columns, strict=True):
            panel(axes, norm, column)
            axes.set_title(f"{titles.get(column, column)}, {'with RMSNorm' if norm else 'without norm'}", fontsize=10)
            axes.grid(axis="y", alpha=0.3)
            axes.set_axisbelow(True)
            axes.label_outer()
    for axes in grid[-1]:
        axes.set_xlabel("hidden width D")
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.suptitle(title, fontsize=10.5)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3 * len(columns), frameon=False, fontsize=9
    )
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path


def _bars(
    axes: Any,
    records: Sequence[Record],
    names: Sequence[str],
    value: Callable[[Record, int], float],
    text: Callable[[float], str],
) -> None:
    """A group of bars for each width, with a bar for each implementation, labelled with its value."""
    widths = sorted({record["width"] for record in records})
    thickness = 0.8 / len(names)
    for i, name in enumerate(names):
        by_width = {record["width"]: record for record in records if record["implementation"] == name}
        positions = [x - 0.4 + (i + 0.5) * thickness for x, width in enumerate(widths) if width in by_width]
        heights = [value(by_width[width], width) for width in widths if width in by_width]
        bars = axes.bar(positions, heights, thickness * 0.94, color=COLORS[name], label=NAMES[name])
        axes.bar_label(bars, [text(height) for height in heights], fontsize=7.5, padding=1.5, bbox=LABEL)
    axes.set_xticks(range(len(widths)), [f"{width:,}" for width in widths])


def _of_size(results: Results, size: str) -> list[Record]:
    """The records of a size, or of the first size there is if it was not measured. A picture shows the first loss
    only."""
    records = results["records"]
    sizes = {record["size"] for record in records}
    chosen = size if size in sizes else records[0]["size"]
    return [r for r in records if r["size"] == chosen and r["loss"] == records[0]["loss"]]


def _batch(record: Record, results: Results) -> str:
    return (
        f"{record['size']}: {record['rows']:,} rows, {record['steps']:,} steps, {record['trajectories']:,} "
        f"trajectories, {results['dtype']}, loss {record['loss']}"
    )


def _device(results: Results) -> str:
    return results["environment"]["device"] + ("" if results["device"] == "cuda" else " (no GPU figures)")


def _clock(results: Results) -> str:
    return "GPU time" if results["device"] == "cuda" else "wall time"
