"""Confidence intervals of a mean over training seeds and questions, both taken as random samples."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95% interval, over questions alone if there is one seed. One question has no interval (None)."""

    mean: float
    low: float | None
    high: float | None


def interval(values: np.ndarray, lowest: float = -1.0) -> Interval:
    """The mean of `values` with its 95% interval, clipped to [`lowest`, 1].

    Seeds and questions are crossed random effects: value = mean + seed + question + residual. The variance of the mean
    is MS_questions / SQ + (MS_seeds - MS_residual) / SQ. Each of the two terms takes the t quantile of its own degrees
    of freedom. Satterthwaite's degrees of freedom for their sum are too many if a few seeds happen to be alike. For the
    coverage see tests/study/test_interval.py.

    Args:
        values: [seeds, questions], each from `lowest` to 1 and none missing.
    """
    from scipy.stats import t

    seeds, questions = values.shape
    mean = float(values.mean())
    if questions < 2:
        return Interval(mean, None, None)
    by_seed, by_question = values.mean(axis=1), values.mean(axis=0)
    squared = float(t.ppf(0.975, questions - 1)) ** 2 * float(by_question.var(ddof=1)) / questions
    if seeds > 1:
        residual = values - by_seed[:, None] - by_question + mean
        residual_part = float((residual**2).sum()) / ((seeds - 1) * (questions - 1)) / values.size
        seed_part = max(float(by_seed.var(ddof=1)) / seeds - residual_part, 0.0)
        squared += float(t.ppf(0.975, seeds - 1)) ** 2 * seed_part
    half = squared**0.5
    return Interval(mean, max(mean - half, lowest), min(mean + half, 1.0))
