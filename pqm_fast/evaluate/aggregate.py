"""One score for a whole solution, from the Q-values of its steps."""

import math
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

from pqm_fast.errors import PQMError

Reduction = Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]
# Each reduces the runs of a flat array, given (q, start of each run, length of each run, temperature).
AGGREGATORS: dict[str, Reduction] = {
    "min": lambda q, start, size, temperature: np.minimum.reduceat(q, start),
    "last": lambda q, start, size, temperature: q[start + size - 1],
    "mean": lambda q, start, size, temperature: np.add.reduceat(q, start) / size,
    "softmin": lambda q, start, size, temperature: _softmin(q, start, size, temperature),
    # The logarithm ranks solutions as the product does, which itself underflows after some hundred steps.
    "prod": lambda q, start, size, temperature: np.add.reduceat(log_sigmoid(q), start),
    "max": lambda q, start, size, temperature: np.maximum.reduceat(q, start),
}
TEMPERATURE = 1.0  # of softmin, in logits


def aggregate(scores: Sequence[float | None], how: str = "min", temperature: float = TEMPERATURE) -> float:
    """The score of one solution from its step Q-values (logits).

    A solution without steps, or with a step that has no score (None: it was cut off), gets -inf and so is never
    preferred: the missing part may be its worst.

    Args:
        scores: one Q-value or None per step, in order.
        how: `min`, `last`, `mean`, `max`, `softmin`: -temperature * log(mean of exp(-q / temperature)), or `prod`: the
            **logarithm** of the product of the sigmoids.
        temperature: of `softmin`, which tends to `min` as it falls to 0, and to `mean` as it grows.

    Raises:
        PQMError: an unknown `how`, a score that is NaN or infinite, or a temperature that is not finite and above 0.
    """
    return float(aggregate_all([scores], how, temperature)[0])


def aggregate_all(
    solutions: Sequence[Sequence[float | None]], how: str = "min", temperature: float = TEMPERATURE
) -> np.ndarray:
    """`aggregate` of each solution: [solutions] float64. Raises the same errors as `aggregate`."""
    if how not in AGGREGATORS:
        raise PQMError(f"unknown aggregator {how!r}; choose one of {', '.join(AGGREGATORS)}")
    check_temperature(temperature)
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
        aggregated[complete] = AGGREGATORS[how](q, np.cumsum(size) - size, size, temperature)
    return aggregated


def check_temperature(temperature: float) -> None:
    """Raises PQMError unless the temperature of `softmin` is a finite number above 0."""
    if not 0 < temperature < math.inf:
        raise PQMError(f"temperature: {temperature} was given; it must be a finite number above 0")


def _softmin(q: np.ndarray, start: np.ndarray, size: np.ndarray, temperature: float) -> np.ndarray:
    """Relative to the lowest score of each run, so that no exponential overflows, and equal scores give exactly that
    score. The functions near 0 and 1 keep the digits at a high temperature, where all exponentials are close to 1."""
    lowest = np.minimum.reduceat(q, start)
    below_1 = np.expm1((np.repeat(lowest, size) - q) / temperature)
    return lowest - temperature * np.log1p(np.add.reduceat(below_1, start) / size)


def log_weight(score: np.ndarray, how: str) -> np.ndarray:
    """The logarithm of a solution's weight in a vote: its aggregated score as a probability.

    The probability is sigmoid(score). For `prod` it is the product of the sigmoids, and the score is its logarithm
    already. -inf stays -inf, a weight of 0.
    """
    return score if how == "prod" else log_sigmoid(score)


def log_odds(score: np.ndarray, how: str) -> np.ndarray:
    """The logit of the probability of `log_weight`, of finite scores. For `prod` at most 708, where the probability is
    closer to 1 than any other number."""
    if how != "prod":
        return score
    below_0 = np.minimum(score, -np.finfo(np.float64).tiny)
    return below_0 - np.log(-np.expm1(below_0))


def log_sigmoid(q: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0, -q)
