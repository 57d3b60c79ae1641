"""A mean over questions, and its confidence interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pqm_fast.errors import PQMError

Values = Sequence[float] | np.ndarray
Z = 1.959964  # standard errors on each side of a 95% interval


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean of values in [0, 1] over `questions`, and its 95% interval over questions.

    The interval is Wilson's score interval with the observed variance in place of mean * (1 - mean). It is exactly
    Wilson's for values 0 and 1, tends to the normal interval for many questions, never leaves [0, 1], and is not empty
    when every question is right. It is None for a single question. docs/how-to/evaluation.md compares its coverage with
    that of the bootstrap.

    `sampling_error` is the standard error that random subsets add to the mean; 0 where all subsets were counted. The
    interval already contains it, since it is part of the spread between questions.
    """

    mean: float
    low: float | None
    high: float | None
    questions: int
    sampling_error: float = 0.0

    @classmethod
    def of(cls, values: Values, variances: Values | None = None) -> "Estimate":
        """The estimate from one value in [0, 1] per question, and the sampling variance of each.

        Raises:
            PQMError: there are no questions.
        """
        x = np.asarray(values, dtype=np.float64)
        if not x.size:
            raise PQMError("no questions to average over")
        sampling_error = 0.0 if variances is None else float(np.sum(variances)) ** 0.5 / x.size
        mean = min(max(float(x.mean()), 0.0), 1.0)  # an expectation may miss 1 by a rounding error
        if x.size == 1:
            return cls(mean, None, None, 1, sampling_error)
        low, high = score_interval(mean, float(x.var()), x.size)
        return cls(mean, low, high, x.size, sampling_error)


def score_interval(mean: float, variance: float, count: int) -> tuple[float, float]:
    """Wilson's 95% interval for the mean of `count` values in [0, 1] with this (biased) variance."""
    widest = mean * (1 - mean)
    effect = variance / widest if widest else 1.0  # 1 for values 0 and 1, less for those between
    k = Z * Z * effect / count
    centre, half = mean + k / 2, (k * widest + k * k / 4) ** 0.5
    return max((centre - half) / (1 + k), 0.0), min((centre + half) / (1 + k), 1.0)
