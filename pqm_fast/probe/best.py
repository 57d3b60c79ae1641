"""The best heads of a probe: by loss and layer, and by loss. A setting is what the seeds of a head share."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import mean, stdev
from typing import Any

SELECT = "auroc"


@dataclass(frozen=True, slots=True)
class Setting:
    """Heads that differ in the seed alone."""

    loss: str
    layer: int
    zeta: float | None
    compare_weight: float | None
    learning_rate: float
    heads: tuple[dict[str, Any], ...]
    """Their lines in heads.jsonl."""

    def values(self, figure: str) -> list[float]:
        """A held-out figure of each head; empty unless all have it as a finite number."""
        values = [head["held_out"].get(figure) for head in self.heads]
        return values if all(value is not None and isfinite(value) for value in values) else []

    def mean(self, figure: str) -> float | None:
        return mean(values) if (values := self.values(figure)) else None

    def spread(self, figure: str) -> float | None:
        """The standard deviation over the seeds; None for fewer than two."""
        return stdev(values) if len(values := self.values(figure)) > 1 else None

    @property
    def seeds(self) -> list[int]:
        return [head["seed"] for head in self.heads]


def settings(heads: Sequence[dict[str, Any]]) -> list[Setting]:
    """The settings among the lines of heads.jsonl, in the order of their first heads."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for head in heads:
        key = (head["loss"], head["layer"], head["zeta"], head["compare_weight"], head["learning_rate"])
        groups[key].append(head)
    return [
        Setting(loss, layer, zeta, weight, rate, tuple(members))
        for (loss, layer, zeta, weight, rate), members in groups.items()
    ]


def best_by_layer(heads: Sequence[dict[str, Any]], select: str = SELECT) -> dict[str, dict[int, Setting]]:
    """{loss: {layer, ascending: the setting with the highest mean of the held-out figure `select` over its seeds}}.

    A tie goes to the first. A setting of which a head lacks the figure, because it is undefined or the training
    diverged, is never the best; a layer without another setting is left out, and so is a loss without a layer.
    """
    with_figure: dict[str, dict[int, list[Setting]]] = defaultdict(lambda: defaultdict(list))
    for setting in settings(heads):
        if setting.values(select):
            with_figure[setting.loss][setting.layer].append(setting)
    return {
        loss: {layer: _best(layers[layer], select) for layer in sorted(layers)} for loss, layers in with_figure.items()
    }


def best_by_loss(heads: Sequence[dict[str, Any]], select: str = SELECT) -> dict[str, Setting]:
    """{loss: the best of its settings on all layers}, as in `best_by_layer`; a tie goes to the lower layer."""
    return {loss: _best(layers.values(), select) for loss, layers in best_by_layer(heads, select).items()}


def _best(candidates: Iterable[Setting], select: str) -> Setting:
    return max(candidates, key=lambda setting: mean(setting.values(select)))
