"""One score for a whole solution from the Q-values of its steps."""

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

from pqm_fast.errors import PQMError

# Each reduces runs of a flat array: (q, start of each run, length of each run).
AGGREGATORS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "min": lambda q, start, size: np.minimum.reduceat(q, start),
    "last": lambda q, start, size: q[start + size - 1],
    "mean": lambda q, start, size: np.add.reduceat(q, start) / size,
    # The logarithm of the product: ranks alike, while the product underflows after some hundred steps.
    "prod": lambda q, start, size: np.add.reduceat(log_sigmoid(q), start),
    "max": lambda q, start, size: np.maximum.reduceat(q, start),
}


def aggregate(scores: Sequence[float | None], how: str = "min") -> float:
    """The score of one solution from its step Q-values (logits).

    A solution without steps, or with a step that has no score (None: it was cut off), gets -inf and so is never
    preferred: what is missing may be its worst part.

    Args:
        scores: one Q-value or None per step, in order.
        how: `min`, `last`, `mean`, `max`, or `prod`: the **logarithm** of the product of the sigmoids.

    Raises:
        PQMError: an unknown `how`, or a score that is NaN or infinite.
    """
    return float(aggregate_all([scores], how)[0])


def aggregate_all(solutions: Sequence[Sequence[float | None]], how: str = "min") -> np.ndarray:
    """`aggregate` of each solution: [solutions] float64. Raises as `aggregate`."""
    if how not in AGGREGATORS:
        raise PQMError(f"unknown aggregator {how!r}; choose one of {', '.join(AGGREGATORS)}")
    every = np.fromiter((s for s in chain.from_iterable(solutions) if s is not None), np.float64)
    if not np.isfinite(every).all():
        raise PQMError(f"step scores must be finite, found {every[~np.isfinite(every)][0]}: check the model's output")
    found = np.full(len(solutions), -np.inf)
    whole = [i for i, own in enumerate(solutions) if len(own) and not any(score is None for score in own)]
    if whole:
        size = np.array([len(solutions[i]) for i in whole])
        q = np.fromiter(chain.from_iterable(solutions[i] for i in whole), np.float64, int(size.sum()))
        found[whole] = AGGREGATORS[how](q, np.cumsum(size) - size, size)
    return found


def log_weight(score: np.ndarray, how: str) -> np.ndarray:
    """Logarithm of a solution's weight in a vote: its aggregated score as a probability.

    sigmoid(score); for `prod` the product itself, whose logarithm the score is. -inf stays: a weight of 0.
    """
    return score if how == "prod" else log_sigmoid(score)


def log_sigmoid(q: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0, -q)
