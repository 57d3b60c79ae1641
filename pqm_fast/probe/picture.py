"""Draws a probe: how well the best heads of each loss tell steps apart, by the layer that they read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pqm_fast.common.pictures import line_styles, save
from pqm_fast.probe.best import SELECT, Setting, best_by_layer


def draw_layers(heads: Sequence[dict[str, Any]], path: Path) -> Path:
    """Writes a PNG with held-out AUROC by layer, a line for each loss: at each layer the mean over the seeds of the
    setting that is best there (`best_by_layer`), and a bar from the lowest seed to the highest. Returns the path.

    `heads` are the lines of heads.jsonl.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    best = best_by_layer(heads)
    layers = sorted({head["layer"] for head in heads})
    figure, axes = plt.subplots(figsize=(7.5, 4.6), constrained_layout=True)
    for loss, style in line_styles(best).items():
        _line(axes, loss, best[loss], style)
    axes.set_xticks(layers)
    axes.set(xlabel="decoder layer that the head reads", ylabel="AUROC of held-out steps")
    axes.grid(axis="y", alpha=0.3)
    if best:  # there is no line where no head has an AUROC
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False)
    return save(figure, path)


def _line(axes: Any, loss: str, by_layer: dict[int, Setting], style: dict[str, Any]) -> None:
    layers = list(by_layer)
    values = [setting.values(SELECT) for setting in by_layer.values()]
    axes.vlines(layers, list(map(min, values)), list(map(max, values)), color=style["color"], alpha=0.4)
    axes.plot(layers, [setting.mean(SELECT) for setting in by_layer.values()], markersize=4, label=loss, **style)
