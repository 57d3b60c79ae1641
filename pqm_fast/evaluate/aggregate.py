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

    Steps without a score (None: they were cut off) are left out. A solution without any scored step gets
    -inf, so that it is never preferred; with `last`, so does one whose last step has no score.

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
    size = np.fromiter((len(s) - s.count(None) for s in map(list, solutions)), np.int64, len(solutions))
    scored = (score for score in chain.from_iterable(solutions) if score is not None)
    q = np.fromiter(scored, np.float64, int(size.sum()))
    if not np.isfinite(q).all():
        raise PQMError(f"step scores must be finite, found {q[~np.isfinite(q)][0]}: check the model's output")
    found = np.full(len(solutions), -np.inf)
    some = size > 0  # reduceat has no empty runs
    if some.any():
        found[some] = AGGREGATORS[how](q, (np.cumsum(size) - size)[some], size[some])
    if how == "last":
        found[[bool(s) and s[-1] is None for s in map(list, solutions)]] = -np.inf
    return found


def log_weight(score: np.ndarray, how: str) -> np.ndarray:
    """Logarithm of a solution's weight in a vote: its aggregated score as a probability.

    sigmoid(score); for `prod` the product itself, whose logarithm the score is. -inf stays: a weight of 0.
    """
    return score if how == "prod" else log_sigmoid(score)


def log_sigmoid(q: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0, -q)
