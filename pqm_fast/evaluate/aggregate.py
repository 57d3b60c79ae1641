"""One score for a whole solution, from the Q-values of its steps."""

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

from pqm_fast.errors import PQMError

# Each reduces the runs of a flat array, given (q, start of each run, length of each run).
AGGREGATORS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "min": lambda q, start, size: np.minimum.reduceat(q, start),
    "last": lambda q, start, size: q[start + size - 1],
    "mean": lambda q, start, size: np.add.reduceat(q, start) / size,
    # The logarithm ranks solutions as the product does, which itself underflows after some hundred steps.
    "prod": lambda q, start, size: np.add.reduceat(log_sigmoid(q), start),
    "max": lambda q, start, size: np.maximum.reduceat(q, start),
}


def aggregate(scores: Sequence[float | None], how: str = "min") -> float:
    """The score of one solution from its step Q-values (logits).

    A solution without steps, or with a step that has no score (None: it was cut off), gets -inf and so is never
    preferred: the missing part may be its worst.

    Args:
        scores: one Q-value or None per step, in order.
        how: `min`, `last`, `mean`, `max`, or `prod`: the **logarithm** of the product of the sigmoids.

    Raises:
        PQMError: an unknown `how`, or a score that is NaN or infinite.
    """
    return float(aggregate_all([scores], how)[0])


def aggregate_all(solutions: Sequence[Sequence[float | None]], how: str = "min") -> np.ndarray:
    """`aggregate` of each solution: [solutions] float64. Raises the same errors as `aggregate`."""
    if how not in AGGREGATORS:
        raise PQMError(f"unknown aggregator {how!r}; choose one of {', '.join(AGGREGATORS)}")
    all_scores = np.fromiter((score for score in chain.from_iterable(solutions) if score is not None), np.float64)
    if not np.isfinite(all_scores).all():
        raise PQMError(
            f"step scores must be finite, found {all_scores[~np.isfinite(all_scores)][0]}: check the model's output"
        )
    aggregated = np.full(len(solutions), -np.inf)
    complete = [i for i, scores in enumerate(solutions) if len(scores) and not any(score is None for score in scores)]
    if complete:
        size = np.array([len(solutions[i]) for i in complete])
        q = np.fromiter(chain.from_iterable(solutions[i] for i in complete), np.float64, int(size.sum()))
        aggregated[complete] = AGGREGATORS[how](q, np.cumsum(size) - size, size)
    return aggregated


def log_weight(score: np.ndarray, how: str) -> np.ndarray:
    """The logarithm of a solution's weight in a vote: its aggregated score as a probability.

    The probability is sigmoid(score). For `prod` it is the product of the sigmoids, and the score is its logarithm
    already. -inf stays -inf, a weight of 0.
    """
    return score if how == "prod" else log_sigmoid(score)


def log_sigmoid(q: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0, -q)
