"""A picture of the counted operations of a trajectory, by way and part, with a panel for each model."""

from pathlib import Path
from typing import Any

from pqm_benchmarks.shared.text import short
from pqm_benchmarks.work.flops import PARTS
from pqm_benchmarks.work.row_counts import WAYS
from pqm_fast.common.files import atomic_file

COLORS = {"layers": "#1f6fb4", "attention": "#7fb2dd", "heads": "#d9a441", "recomputation": "#8a93a6"}


def draw(results: dict[str, Any], folder: Path) -> Path:
    """Writes work_counted.png from what `run` returns; the dotted line is the floor."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shapes = results["shapes"]
    figure, axes = plt.subplots(
        1,
        len(shapes),
        figsize=(max(7.5, 1.5 + 2.4 * len(shapes)), 2.9),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for panel, (name, shape) in zip(axes[0], shapes.items(), strict=True):
        for row, way in enumerate(WAYS):
            left = 0.0
            for part in PARTS:
                flops = shape["parts"][way][part] / 1e12
                panel.barh(row, flops, 0.7, left=left, color=COLORS[part], label=part if row == 0 else None)
                left += flops
            times = shape["flops_per_trajectory"]["reference"] / shape["flops_per_trajectory"][way]
            text = f" {short(left)}" + (f" ({times:.2f}x less)" if row else "")
            panel.annotate(text, (left, row), va="center", fontsize=8)
        panel.axvline(shape["floor"] / 1e12, color="black", linestyle=":", linewidth=1)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("TFLOP a trajectory", fontsize=9)
        panel.margins(x=0.3)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_yticks(range(len(WAYS)), list(WAYS.values()), fontsize=9)
    axes[0, 0].invert_yaxis()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(PARTS), fontsize=9)
    path = folder / "work_counted.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path
