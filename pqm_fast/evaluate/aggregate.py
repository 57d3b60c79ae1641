"""One score for a whole solution from the Q-values of its steps."""

from collections.abc import Callable, Sequence

import numpy as np

from pqm_fast.errors import PQMError

AGGREGATORS: dict[str, Callable[[np.ndarray], float]] = {
    "min": np.min,
    "last": lambda q: q[-1],
    "mean": np.mean,
    # The logarithm of the product: ranks alike, while the product underflows after some hundred steps.
    "prod": lambda q: -np.logaddexp(0, -q).sum(),
    "max": np.max,
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
    if how not in AGGREGATORS:
        raise PQMError(f"unknown aggregator {how!r}; choose one of {', '.join(AGGREGATORS)}")
    q = np.array([score for score in scores if score is not None], dtype=np.float64)
    if not np.isfinite(q).all():
        raise PQMError(f"step scores must be finite, found {q[~np.isfinite(q)][0]}: check the model's output")
    if not q.size or (how == "last" and scores[-1] is None):
        return float("-inf")
    return float(AGGREGATORS[how](q))
