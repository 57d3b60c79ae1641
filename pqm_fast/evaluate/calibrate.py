"""Finds the best threshold by exact search, always on questions other than those that it is then used on."""

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import TypeVar

import numpy as np

FOLDS = 5
ON_FOLDS = f"for each fifth of the questions, the other {FOLDS - 1}"
ON_OTHERS = "other questions given"
Choice = TypeVar("Choice")


def deal(questions: Sequence[str]) -> np.ndarray:
    """[questions] int64: the fold of each question. It comes from a hash of the text, whatever the order of the
    questions; equal texts share a fold."""
    order = sorted(set(questions), key=lambda text: sha256(text.encode("utf-8", "surrogatepass")).digest())
    fold_of = {question: i % FOLDS for i, question in enumerate(order)}
    return np.fromiter((fold_of[question] for question in questions), np.int64, len(questions))


def cross(folds: np.ndarray, choose: Callable[[np.ndarray], Choice | None]) -> list[Choice] | None:
    """For each fold, the choice that `choose` makes on the other folds, which it gets as a mask. None if `choose`
    returns None for any fold."""
    choices = [choice for fold in range(FOLDS) if (choice := choose(folds != fold)) is not None]
    return choices if len(choices) == FOLDS else None


def candidates(ends: np.ndarray) -> np.ndarray:
    """Sorted thresholds that represent all others: one below the finite values of `ends`, one between each two of them,
    and one above. Only 0 if no end is finite.

    A figure that changes only at `ends` has its highest value at one of these thresholds.
    """
    ends = np.unique(ends[np.isfinite(ends)])
    return np.r_[ends[0] - 1, (ends[:-1] + ends[1:]) / 2, ends[-1] + 1] if ends.size else np.zeros(1)


def below(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """[thresholds] how many of the values are below each threshold."""
    return np.searchsorted(np.sort(values), thresholds, side="left")


def right_between(q: np.ndarray, used: np.ndarray, trajectory: np.ndarray, first_error: np.ndarray) -> np.ndarray:
    """[trajectories, 2] the interval (lo, hi] of the thresholds that find a trajectory's first error.

    A threshold finds the first used step with q < threshold. That must be the first error; in a trajectory without an
    error there must not be such a step. The interval is (inf, inf) where no threshold succeeds.

    Args:
        q: [steps] of all trajectories in a row.
        used: [steps] bool, whether a threshold can find the step at all.
        trajectory: [steps] index of the trajectory of each step, ascending.
        first_error: [trajectories] index among all steps, -1 for a trajectory without an error.
    """
    wrong = first_error >= 0
    before_error = used & ((first_error < 0)[trajectory] | (np.arange(q.size) < first_error[trajectory]))
    high = np.full(len(first_error), np.inf)
    np.minimum.at(high, trajectory[before_error], q[before_error])
    low = np.full(len(first_error), -np.inf)
    low[wrong] = np.where(used[first_error[wrong]], q[first_error[wrong]], np.inf)
    bounds = np.stack([low, high], axis=1)
    bounds[~(low < high)] = np.inf
    return bounds


def share_inside(bounds: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """[thresholds] share of the intervals (lo, hi] that contain each threshold."""
    return (below(bounds[:, 0], thresholds) - below(bounds[:, 1], thresholds)) / len(bounds)
