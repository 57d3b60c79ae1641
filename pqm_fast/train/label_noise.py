"""How often step labels are wrong, estimated from the labels alone.

The model: the steps of a solution are right up to a first error, which no one sees, and not from there on. It happens
at a step with a probability (the hazard) that depends on the step's place. A step before it is labelled wrong with
probability `before`, a step from there on is labelled correct with probability `after`. Labels that fall and rise
again, as in 1 1 0 1 1 0 0, tell both rates; solutions of a single step do not, and leave them near where they start.

Expectation maximisation (Dempster, Laird and Rubin, 1977) finds rates and hazards for which the labels are likely. No
iteration lowers the likelihood, and each takes time linear in the number of steps.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

PLACES = 16  # steps from this one on have one hazard
START = 0.1  # of both rates, and of each hazard
# a rate of 0 would make labels that contradict it impossible; above 0.5 "correct" would mean "wrong"
LOWEST, HIGHEST = 1e-4, 0.5
LEAST_HAZARD = 1e-9
LEAST_GAIN = 1e-9  # of the log-likelihood, relative; the estimate has converged when an iteration gains less
MOST_ITERATIONS = 2000


@dataclass(frozen=True)
class NoiseEstimate:
    """The rates of wrong labels, and how they were found."""

    before: float
    """The probability that a step before the first error is labelled wrong."""
    after: float
    """The probability that a step from the first error on is labelled correct."""
    hazards: np.ndarray
    """[16] float64: the probability that the first error is at a step, if it was not before."""
    log_likelihoods: tuple[float, ...]
    """That of all labels before each iteration."""


def estimate_noise(labels: Iterable[np.ndarray]) -> NoiseEstimate:
    """Estimates the rates from the labels [K] of each solution, which are numbers in [0, 1] without NaN.

    A label between 0 and 1 is a mixture: 1 with that probability, else 0. Without any label, the rates are where the
    estimate starts.
    """
    patterns = Counter(np.asarray(own, dtype=np.float64).tobytes() for own in labels if len(own))
    solutions = _Solutions(patterns)
    before, after, hazards = START, START, np.full(PLACES, START)
    log_likelihoods: list[float] = []
    for _ in range(MOST_ITERATIONS if patterns else 0):
        log_likelihood, updated = solutions.iterate(before, after, hazards)
        log_likelihoods.append(log_likelihood)
        if len(log_likelihoods) > 1 and log_likelihood - log_likelihoods[-2] <= LEAST_GAIN * abs(log_likelihood):
            break
        before, after, hazards = updated
    return NoiseEstimate(before, after, hazards, tuple(log_likelihoods))


class _Solutions:
    """Distinct sequences of labels, laid end to end, each with the number of solutions that have it."""

    def __init__(self, patterns: Counter[bytes]):
        sequences = [np.frombuffer(own) for own in patterns]
        lengths = np.array([len(own) for own in sequences], dtype=np.int64)
        self.y = np.concatenate([np.zeros(0), *sequences])
        self.starts = np.cumsum(lengths) - lengths
        self.last = self.starts + lengths - 1
        self.of_step = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(len(self.y)) - self.starts[self.of_step]
        self.place = np.minimum(place, PLACES - 1)
        self.count = np.array(list(patterns.values()), dtype=np.float64)
        self.count_of_step = self.count[self.of_step]

    def iterate(
        self, before: float, after: float, hazards: np.ndarray
    ) -> tuple[float, tuple[float, float, np.ndarray]]:
        """The log-likelihood, and the rates and hazards that are most likely given where the first errors then are."""
        y, hazard = self.y, hazards[self.place]
        right, wrong = y * (1 - before) + (1 - y) * before, y * after + (1 - y) * (1 - after)
        survived = self._sums(np.log(right) + np.log1p(-hazard))  # up to and including each step
        erred = self._sums(np.log(wrong))
        # log P(labels, the first error is here), and log P(labels, there is none)
        here = np.log(hazard) - np.log1p(-hazard) + survived - np.log(right) + np.log(wrong)
        here += erred[self.last][self.of_step] - erred
        never = survived[self.last]
        largest = np.maximum(np.maximum.reduceat(here, self.starts), never)
        total = np.add.reduceat(np.exp(here - largest[self.of_step]), self.starts) + np.exp(never - largest)
        evidence = largest + np.log(total)

        is_here = np.exp(here - evidence[self.of_step])
        is_over = np.minimum(self._sums(is_here), 1.0)  # P(the first error is here or earlier)
        at_risk = 1.0 - is_over + is_here
        flipped_right, flipped_wrong = (1 - y) * before / right, y * after / wrong
        updated_hazards = self._by_place(is_here) / np.maximum(self._by_place(at_risk), 1e-300)
        updated = (
            self._rate(flipped_right, 1.0 - is_over, before),
            self._rate(flipped_wrong, is_over, after),
            np.clip(updated_hazards, LEAST_HAZARD, 1 - LEAST_HAZARD),
        )
        return float(self.count @ evidence), updated

    def _sums(self, values: np.ndarray) -> np.ndarray:
        """Running sums [steps] of each solution."""
        total = np.cumsum(values)
        return total - (total - values)[self.starts][self.of_step]

    def _by_place(self, weights: np.ndarray) -> np.ndarray:
        return np.bincount(self.place, self.count_of_step * weights, PLACES)

    def _rate(self, flipped: np.ndarray, weights: np.ndarray, otherwise: float) -> float:
        """The weighted mean of `flipped` within the bounds of a rate; `otherwise` if all weights are 0."""
        weights = weights * self.count_of_step
        total = weights.sum()
        return float(np.clip(weights @ flipped / total, LOWEST, HIGHEST)) if total > 0 else otherwise
