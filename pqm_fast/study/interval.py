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
    estimated by MS_seeds / SQ + MS_questions / SQ - MS_rest / SQ, not below its largest term; degrees of freedom after
    Satterthwaite. How often it holds: tests/study/test_interval.py.
    """
    from scipy.stats import t

    seeds, questions = values.shape
    mean = float(values.mean())
    if questions < 2:
        return Interval(mean, None, None)
    size = values.size
    by_seed, by_question = values.mean(axis=1), values.mean(axis=0)
    of_questions = seeds * float(by_question.var(ddof=1)) / size
    terms = [(of_questions, questions - 1.0)]
    variance = of_questions
    if seeds > 1:
        of_seeds = questions * float(by_seed.var(ddof=1)) / size
        rest = values - by_seed[:, None] - by_question + mean
        of_rest = float((rest**2).sum()) / ((seeds - 1) * (questions - 1)) / size
        terms += [(of_seeds, seeds - 1.0), (of_rest, (seeds - 1.0) * (questions - 1))]
        variance = max(of_questions, of_seeds, of_questions + of_seeds - of_rest)
    if variance == 0:
        return Interval(mean, mean, mean)
    freedom = variance**2 / sum(term**2 / own for term, own in terms)
    half = float(t.ppf(0.975, max(freedom, 1.0))) * variance**0.5
    return Interval(mean, max(mean - half, lowest), min(mean + half, 1.0))
