"""The grid of a study: its cells, and the trials at each of them."""

from dataclasses import dataclass, replace
from urllib.parse import quote

from pqm_fast.common.combination import Combination, parse_loss
from pqm_fast.common.names import digits
from pqm_fast.study.config import StudyConfig


@dataclass(frozen=True, slots=True)
class Cell:
    """A point of the grid. `loss` is the text, such as `bce` or `bce+sibling`. `zeta` is None for losses without a
    margin. `labels` is the kind, such as `flip:0.2`."""

    loss: str
    zeta: float | None
    model: str
    labels: str

    @property
    def combination(self) -> Combination:
        return parse_loss(self.loss)

    def with_loss(self, loss: str, zeta: float) -> "Cell":
        return replace(self, loss=loss, zeta=zeta if parse_loss(loss).uses_zeta else None)


@dataclass(frozen=True, slots=True)
class Trial:
    """One training at a cell."""

    cell: Cell
    learning_rate: float
    seed: int
    compare_weight: float | None = None
    """Weight of the added comparison; None for a loss by itself."""

    @property
    def name(self) -> str:
        """The name of its folder and files, which no other trial has."""
        cell = self.cell
        loss = cell.loss if cell.zeta is None else f"{cell.loss}-zeta{digits(cell.zeta)}"
        labels = cell.labels.replace(":", "")
        weight = "" if self.compare_weight is None else f"_weight{digits(self.compare_weight)}"
        rate = digits(self.learning_rate)
        return f"{loss}_{quote(cell.model, safe='')}_{labels}_lr{rate}{weight}_seed{self.seed}"


def cells(config: StudyConfig) -> list[Cell]:
    """Each cell once: all losses with each kind of labels, then with each further model, then rank with each zeta."""
    base = Cell("rank", config.zeta, config.models[0], config.labels[0])
    points = [
        replace(base, labels=labels).with_loss(loss, config.zeta) for labels in config.labels for loss in config.losses
    ]
    points += [
        replace(base, model=model).with_loss(loss, config.zeta) for model in config.models[1:] for loss in config.losses
    ]
    if "rank" in config.losses:
        points += [replace(base, zeta=zeta) for zeta in config.zetas]
    return list(dict.fromkeys(points))


def tuning_trials(config: StudyConfig, cell: Cell) -> list[Trial]:
    """The trials at a cell to choose from, all with the first seed: as many for every loss."""
    seed = config.seeds[0]
    if cell.combination.compare is None:
        return [Trial(cell, rate, seed) for rate in config.learning_rates]
    rates = config.compare_learning_rates or config.learning_rates
    return [Trial(cell, rate, seed, weight) for rate in rates for weight in config.compare_weights]
