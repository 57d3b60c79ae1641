"""Which trainings a study consists of."""

from dataclasses import dataclass, replace
from urllib.parse import quote

from pqm_kernels.losses import LOSSES

from pqm_fast.common.options import Loss
from pqm_fast.study.config import StudyConfig


@dataclass(frozen=True, slots=True)
class Cell:
    """A point of the grid: what a loss is trained on, and how. `zeta` is None for losses that have none."""

    loss: Loss
    zeta: float | None
    model: str
    labels: str

    def with_loss(self, loss: Loss, zeta: float) -> "Cell":
        return replace(self, loss=loss, zeta=zeta if LOSSES[loss].uses_zeta else None)


@dataclass(frozen=True, slots=True)
class Trial:
    """One training."""

    cell: Cell
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder and its file; tells it from every other trial."""
        cell = self.cell
        loss = cell.loss if cell.zeta is None else f"{cell.loss}-zeta{_digits(cell.zeta)}"
        labels = cell.labels.replace(":", "")
        return f"{loss}_{quote(cell.model, safe='')}_{labels}_lr{_digits(self.learning_rate)}_seed{self.seed}"


def _digits(value: float) -> str:
    """All that it takes to tell it from another: 4, 0.001, 1e-05."""
    return str(value).removesuffix(".0")


def cells(config: StudyConfig) -> list[Cell]:
    """The grid, each point once: losses by labels, by further models, and rank (if it is one of them) by zetas."""
    first = Cell("rank", config.zeta, config.models[0], config.labels[0])
    points = [
        replace(first, labels=labels).with_loss(loss, config.zeta) for labels in config.labels for loss in config.losses
    ]
    points += [
        replace(first, model=model).with_loss(loss, config.zeta)
        for model in config.models[1:]
        for loss in config.losses
    ]
    if "rank" in config.losses:
        points += [replace(first, zeta=zeta) for zeta in config.zetas]
    return list(dict.fromkeys(points))
