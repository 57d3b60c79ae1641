"""Heads of a probe as the lines of heads.jsonl, with figures from a seeded generator."""

from itertools import product
from typing import Any

import numpy as np


def head(loss: str, layer: int, auroc: float | None, seed: int = 0, **more: Any) -> dict[str, Any]:
    """A line; `more` has the zeta, weight and rate, and further held-out figures."""
    spec = {"loss": loss, "layer": layer, "zeta": None, "compare_weight": None, "learning_rate": 0.01, "seed": seed}
    spec |= {name: more.pop(name) for name in ("zeta", "compare_weight", "learning_rate") if name in more}
    name = "-".join(str(value) for value in spec.values())
    held_out = {"loss": 0.5, "auroc": auroc, "pair_accuracy": 0.7, "balanced_accuracy_calibrated": 0.6} | more
    return {"name": name, **spec, "epochs": 9, "best_epoch": 5, "seconds": 0.5, "held_out": held_out}


def made_up_heads(seed: int = 0) -> list[dict[str, Any]]:
    """Three losses on four layers with three seeds: two zetas or weights where the loss has one, and two rates."""
    rng = np.random.default_rng(seed)
    options: dict[str, list[dict[str, Any]]] = {
        "rank": [{"zeta": 2.0}, {"zeta": 4.0}],
        "bce": [{}],
        "bce+sibling": [{"zeta": 4.0, "compare_weight": 0.5}, {"zeta": 4.0, "compare_weight": 1.0}],
    }
    return [
        head(loss, layer, float(rng.uniform(0.6, 0.9)), seed, learning_rate=rate, pair_accuracy=rng.random(), **option)
        for loss, own in options.items()
        for layer, option, rate, seed in product((8, 4, 12, 16), own, (0.001, 0.01), range(3))
    ]
