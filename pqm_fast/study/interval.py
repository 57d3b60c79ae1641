"""How far to trust a mean over training seeds and questions, both of which are samples of what might have been."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95% interval. With one seed the interval covers the questions alone; None for one question."""

    mean: float
    low: float | None
    high: float | None


def interval(values: np.ndarray, lowest: float = -1.0) -> Interval:
    """From values [seeds, questions] between `lowest` and 1, as which the interval ends; every seed has every question.

    Seeds and questions are crossed random effects: value = mean + seed + question + rest. The variance of the mean is
    MS_questions / SQ + (MS_seeds - MS_rest) / SQ, and each of the two terms has the t quantile of its own degrees of
    freedom: Satterthwaite's for their sum are too many wherever a few seeds happen to be alike. How often it holds:
    tests/study/test_interval.py.
    """
    from scipy.stats import t

    seeds, questions = values.shape
    mean = float(values.mean())
    if questions < 2:
        return Interval(mean, None, None)
    by_seed, by_question = values.mean(axis=1), values.mean(axis=0)
    squared = float(t.ppf(0.975, questions - 1)) ** 2 * float(by_question.var(ddof=1)) / questions
    if seeds > 1:
        rest = values - by_seed[:, None] - by_question + mean
        of_rest = float((rest**2).sum()) / ((seeds - 1) * (questions - 1)) / values.size
        of_seeds = max(float(by_seed.var(ddof=1)) / seeds - of_rest, 0.0)
        squared += float(t.ppf(0.975, seeds - 1)) ** 2 * of_seeds
    half = squared**0.5
    return Interval(mean, max(mean - half, lowest), min(mean + half, 1.0))
