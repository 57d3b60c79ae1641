"""The heads of a probe: which ones the options ask for, and what becomes of each."""

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import Any

import numpy as np

from pqm_fast.common.combination import Combination, parse_loss
from pqm_fast.common.names import digits
from pqm_fast.probe.best import best_by_loss
from pqm_fast.probe.options import ProbeConfig


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """One head to train. `loss` is a text such as `rank` or `bce+sibling`; `zeta` is None for a loss without a margin,
    and `compare_weight` for a loss by itself."""

    layer: int
    loss: str
    zeta: float | None
    compare_weight: float | None
    learning_rate: float
    seed: int

    @property
    def combination(self) -> Combination:
        return parse_loss(self.loss)

    @property
    def name(self) -> str:
        """The name of its tensors, which no other head has."""
        zeta = "" if self.zeta is None else f"-zeta{digits(self.zeta)}"
        weight = "" if self.compare_weight is None else f"-weight{digits(self.compare_weight)}"
        return f"layer{self.layer}-{self.loss}{zeta}{weight}-rate{digits(self.learning_rate)}-seed{self.seed}"


@dataclass(frozen=True)
class Head:
    """A trained head: q = normed states . weight + bias, with the weights of its best epoch."""

    spec: HeadSpec
    weight: np.ndarray
    """[D] float32."""
    bias: float
    epochs: int
    """Passes over the data that it took."""
    best_epoch: int
    """The pass with the lowest held-out loss; 0 if the loss was not finite."""
    curve: list[list[float]]
    """For each pass: training loss (the mean over its steps) and held-out loss."""
    held_out: dict[str, Any]
    """Held-out loss and step metrics of the best epoch."""
    seconds: float

    def row(self) -> dict[str, Any]:
        """Its line in heads.jsonl: all but the weights."""
        figures = {name: getattr(self, name) for name in ("epochs", "best_epoch", "curve", "held_out", "seconds")}
        return {"name": self.spec.name, **asdict(self.spec), **figures}

    def to_store(self) -> dict[str, Any]:
        """Its line in the journal of a run, with the weights."""
        weight = base64.b64encode(self.weight.astype("<f4").tobytes()).decode()
        return self.row() | {"weight": weight, "bias": self.bias}

    @classmethod
    def from_store(cls, row: dict[str, Any]) -> "Head":
        """The head of a line that `to_store` made. Raises ValueError, LookupError or TypeError for another one."""
        spec = HeadSpec(**{field.name: row[field.name] for field in fields(HeadSpec)})
        weight = np.frombuffer(base64.b64decode(row["weight"]), dtype="<f4")
        return cls(spec, weight, *(row[field.name] for field in fields(cls)[2:]))


def grid(config: ProbeConfig, layers: Sequence[int]) -> list[HeadSpec]:
    """Every head that the options ask for, layer by layer."""
    # neighbours read the same states, which are laid out for a seed
    specs = [
        HeadSpec(layer, loss, *point, seed)
        for layer, loss in product(layers, dict.fromkeys(config.losses))
        for seed, point in product(
            config.seeds, points(loss, config.zetas, config.compare_weights, config.learning_rates)
        )
    ]
    return list(dict.fromkeys(specs))


def points(
    loss: str, zetas: Sequence[float], compare_weights: Sequence[float], learning_rates: Sequence[float]
) -> list[tuple[float | None, float | None, float]]:
    """Every (zeta, weight of the comparison, learning rate) for a loss; None stands for what it does not have."""
    combination = parse_loss(loss)
    own_zetas = zetas if combination.uses_zeta else (None,)
    own_weights = compare_weights if combination.compare else (None,)
    return list(product(own_zetas, own_weights, learning_rates))


def choose(heads: Sequence[Head], select: str) -> Head | None:
    """The best head: of the setting with the best mean over its seeds, the best seed. A tie goes to the first. None if
    no head has the figure `select`."""
    settings = best_by_loss([head.row() for head in heads], select).values()
    if not settings:
        return None
    best = max(settings, key=lambda setting: setting.mean(select) or 0.0)
    name = max(best.heads, key=lambda row: row["held_out"][select])["name"]
    return next(head for head in heads if head.spec.name == name)
