"""Which trainings a study consists of."""

from dataclasses import dataclass, replace

from pqm_fast.study.config import StudyConfig
from pqm_fast.train.config import Loss

USE_ZETA = ("rank", "rank-theory", "pairwise")


@dataclass(frozen=True, slots=True)
class Cell:
    """A point of the grid: what a loss is trained on, and how. `zeta` is None for losses that have none."""

    loss: Loss
    zeta: float | None
    model: str
    labels: str

    def with_loss(self, loss: Loss, zeta: float) -> "Cell":
        return replace(self, loss=loss, zeta=zeta if loss in USE_ZETA else None)


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
        margin = "" if cell.zeta is None else f"-zeta{cell.zeta:g}"
        parts = [cell.loss + margin, cell.model, cell.labels, f"lr{self.learning_rate:g}", f"seed{self.seed}"]
        return "_".join(part.replace("/", "--").replace(":", "") for part in parts)


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
