"""The threshold with the highest figure, exactly, and always from other questions than those it is used on."""

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import TypeVar

import numpy as np

FOLDS = 5
ON_FOLDS = f"for each fifth of the questions, the other {FOLDS - 1}"
ON_OTHERS = "other questions given"
Choice = TypeVar("Choice")


def deal(questions: Sequence[str]) -> np.ndarray:
    """[questions] int64: the fold of each, by a hash of its text, whatever their order; equal texts share a fold."""
    order = sorted(set(questions), key=lambda text: sha256(text.encode("utf-8", "surrogatepass")).digest())
    fold_of = {question: i % FOLDS for i, question in enumerate(order)}
    return np.fromiter((fold_of[question] for question in questions), np.int64, len(questions))


def cross(folds: np.ndarray, choose: Callable[[np.ndarray], Choice | None]) -> list[Choice] | None:
    """For each fold what `choose` finds on the others, given as a mask; None if it finds nothing for one of them."""
    found = [choose(folds != fold) for fold in range(FOLDS)]
    some = [choice for choice in found if choice is not None]
    return some if len(some) == len(found) else None


def candidates(ends: np.ndarray) -> np.ndarray:
    """Thresholds that stand for all: one below the finite ones of `ends`, one between each two, one above; sorted.

    A figure that changes at `ends` only has its highest value at one of them. Without finite ends: 0 alone.
    """
    ends = np.unique(ends[np.isfinite(ends)])
    return np.r_[ends[0] - 1, (ends[:-1] + ends[1:]) / 2, ends[-1] + 1] if ends.size else np.zeros(1)


def below(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """[thresholds] how many of the values are lower than each."""
    return np.searchsorted(np.sort(values), thresholds, side="left")


def right_between(q: np.ndarray, used: np.ndarray, trajectory: np.ndarray, first_error: np.ndarray) -> np.ndarray:
    """[trajectories, 2] the interval (lo, hi] of the thresholds that find a trajectory's first error.

    The step found is the first used one with q < threshold; it must be the first error, or none where there is none.
    (inf, inf) where no threshold does.

    Args:
        q: [steps] of all trajectories in a row.
        used: [steps] bool, whether a step can be found at all.
        trajectory: [steps] which trajectory each belongs to, ascending.
        first_error: [trajectories] index of a step among all, -1 for a trajectory without an error.
    """
    wrong = first_error >= 0
    before = used & ((first_error < 0)[trajectory] | (np.arange(q.size) < first_error[trajectory]))
    high = np.full(len(first_error), np.inf)
    np.minimum.at(high, trajectory[before], q[before])
    low = np.full(len(first_error), -np.inf)
    low[wrong] = np.where(used[first_error[wrong]], q[first_error[wrong]], np.inf)
    bounds = np.stack([low, high], axis=1)
    bounds[~(low < high)] = np.inf
    return bounds


def share_inside(bounds: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """[thresholds] share of the intervals (lo, hi] that hold each."""
    return (below(bounds[:, 0], thresholds) - below(bounds[:, 1], thresholds)) / len(bounds)
