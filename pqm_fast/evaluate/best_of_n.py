"""Best-of-N and pass@N, as exact expectations over all subsets of a pool of candidates.

The best of n random candidates is the i-th of the sorted pool with a probability that only i, n and the size of the
pool decide. So one sort gives the expectation for every n: no sampling, and no dependence on the order of candidates.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from pqm_fast.errors import PQMError
from pqm_fast.evaluate.estimate import Estimate, Values


def best_of_n(scores: Sequence[Values], correct: Sequence[Values], n: int) -> Estimate:
    """Expected correctness of the highest-scored of n candidates drawn without replacement.

    Candidates with equal scores are equally likely to be picked.

    Args:
        scores: per question, one score per candidate (`aggregate`); -inf is allowed.
        correct: per question, the candidates' correctness in [0, 1].
        n: subset size, 1 <= n <= the number of candidates of every question.

    Raises:
        PQMError: n out of range, different lengths, a NaN, or no questions.
    """
    for question, own in enumerate(scores):
        if not 1 <= n <= len(own):
            raise PQMError(f"question {question} has {len(own)} candidates: n={n} must be between 1 and that")
    return Estimate.of(expected_best(scores, correct, [n])[:, 0])


def pass_at_n(correct: Sequence[Values], n: int) -> Estimate:
    """Probability that n candidates drawn without replacement hold a correct one, 1 - C(wrong, n)/C(all, n).

    The unbiased estimator of arXiv 2107.03374: Best-of-N with an oracle for a scorer. Raises as `best_of_n`.
    """
    return best_of_n(correct, correct, n)


def mean_accuracy(correct: Sequence[Values]) -> Estimate:
    """Accuracy of one candidate drawn at random; every question weighs the same. PQMError: an empty pool."""
    if any(len(own) == 0 for own in correct):
        raise PQMError(f"question {[len(own) for own in correct].index(0)} has no candidates")
    return Estimate.of([float(np.mean(own)) for own in correct])


def something_to_choose(entry: dict[str, Any]) -> bool:
    """Whether a pool that `evaluate_pools` describes has several candidates of a question, and an n above 1."""
    return any(int(n) > 1 for n in entry["pass_at_n"])


def expected_best(scores: Sequence[Values], correct: Sequence[Values], ns: Sequence[int]) -> np.ndarray:
    """[questions, ns] expected correctness of the best of n; NaN where a question has fewer candidates.

    Raises:
        PQMError: different lengths, or a NaN.
    """
    if len(scores) != len(correct):
        raise PQMError(f"{len(scores)} questions with scores but {len(correct)} with correctness: pass one each")
    values = np.empty((len(scores), len(ns)))
    for i, (own, hits) in enumerate(zip(scores, correct, strict=True)):
        s, c = np.asarray(own, dtype=np.float64), np.asarray(hits, dtype=np.float64)
        if s.shape != c.shape:
            raise PQMError(f"question {i}: {s.size} scores but {c.size} correctness values")
        if np.isnan(s).any() or np.isnan(c).any():
            raise PQMError(f"question {i}: a score or correctness value is NaN")
        values[i] = _correct_by_rank(s, c) @ _pick(s.size, tuple(ns)) if s.size else np.nan
        values[i, [n > s.size for n in ns]] = np.nan
    return values


def _correct_by_rank(scores: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """[candidates] correctness from the highest score down; candidates tied with each other have their mean."""
    order = np.argsort(-scores, kind="stable")
    s, c = scores[order], correct[order]
    start = np.flatnonzero(np.r_[True, s[1:] != s[:-1]])
    size = np.diff(np.r_[start, s.size])
    return np.repeat(np.add.reduceat(c, start) / size, size)


@lru_cache(maxsize=256)
def _pick(candidates: int, ns: tuple[int, ...]) -> np.ndarray:
    """[candidates, ns] probability that the best of n drawn is the i-th of the sorted pool.

    With r = candidates - i left from there on, all n are among those with probability C(r, n) / C(candidates, n), and
    include the i-th with n / r.
    """
    r, n = np.arange(candidates, 0, -1)[:, None], np.array(ns)[None]
    inside = np.cumprod(np.maximum(r - n, 0) / r, axis=0)  # reaches 0 at r = n and stays there
    return np.vstack([np.ones_like(n), inside[:-1]]) * n / r
