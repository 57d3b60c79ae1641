"""Draws the picture of a run, training.png, from its metrics.jsonl."""

from pathlib import Path
from typing import Any

from pqm_fast.common.files import atomic_file
from pqm_fast.train.metrics_file import METRICS_FILE, read_metrics


def draw_curve(folder: Path) -> Path:
    """Draws loss (with its flat floor), accuracies, gradient norm and learning rate; returns the picture's path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_metrics(folder / METRICS_FILE)
    train = [row for row in rows if row["kind"] == "train"]
    held_out = [row for row in rows if row["kind"] == "eval"]
    figure, (loss, accuracy, gradient) = plt.subplots(1, 3, figsize=(15, 4.2), constrained_layout=True)

    _line(loss, train, "loss", label="training", color="tab:blue", alpha=0.7)
    _line(loss, held_out, "loss", label="held out", color="tab:orange", marker="o", markersize=3)
    _line(loss, train, "flat_floor", label="floor: correct steps all scored alike", color="gray", linestyle=":")
    loss.set(title="loss", xlabel="optimizer step")

    points = {"markersize": 3}
    _line(accuracy, train, "step_accuracy", label="step accuracy, training", color="tab:blue", alpha=0.4)
    _line(
        accuracy, held_out, "step_accuracy", label="step accuracy, held out", color="tab:orange", marker="o", **points
    )
    _line(accuracy, held_out, "auroc", label="step AUROC, held out", color="tab:green", marker="s", **points)
    _line(accuracy, held_out, "pair_accuracy", label="pairs in order, held out", color="tab:red", marker="^", **points)
    accuracy.set(title="accuracy", xlabel="optimizer step", ylim=(None, 1.02))

    _line(gradient, train, "grad_norm", label="gradient norm", color="tab:purple", alpha=0.7)
    gradient.set(title="gradient norm and learning rate", xlabel="optimizer step", yscale="log")
    rate = gradient.twinx()
    _line(rate, train, "learning_rate", label="learning rate", color="tab:brown")
    rate.set_ylim(bottom=0)

    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        if axes.get_lines():
            axes.legend(fontsize=8)
    gradient.grid(alpha=0.3)
    if lines := [*gradient.get_lines(), *rate.get_lines()]:
        gradient.legend(lines, [str(line.get_label()) for line in lines], fontsize=8, loc="lower left")
    path = folder / "training.png"
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return path


def _line(axes: Any, rows: list[dict[str, Any]], key: str, **style: Any) -> None:
    """Plots `key` against the step, for the rows in which it is a number."""
    points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    if points:
        axes.plot(*zip(*points, strict=True), **style)
