"""Best-of-N and pass@N, as exact expectations over all subsets of a pool of candidates, and of its first N.

The best of n random candidates is the i-th of the sorted pool with a probability that depends only on i, n and the size
of the pool. So one sort gives the expectation for every n, without sampling, whatever the order of the candidates.
Published results are often of the first n instead: one subset, so a noisier figure for the same quantity.
"""

from collections.abc import Iterator, Sequence
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
    for question, candidates in enumerate(scores):
        if not 1 <= n <= len(candidates):
            raise PQMError(f"question {question} has {len(candidates)} candidates: n={n} must be between 1 and that")
    return Estimate.of(expected_best(scores, correct, [n])[:, 0])


def pass_at_n(correct: Sequence[Values], n: int) -> Estimate:
    """Probability that n candidates drawn without replacement include a correct one, 1 - C(wrong, n)/C(all, n).

    This is the unbiased estimator of arXiv 2107.03374, Best-of-N with an oracle as the scorer. Raises the errors of
    `best_of_n`.
    """
    return best_of_n(correct, correct, n)


def mean_accuracy(correct: Sequence[Values]) -> Estimate:
    """Accuracy of one candidate drawn at random; every question has the same weight.

    Raises:
        PQMError: a question without candidates, or no questions.
    """
    sizes = list(map(len, correct))
    if 0 in sizes:
        raise PQMError(f"question {sizes.index(0)} has no candidates")
    return Estimate.of([float(np.mean(values)) for values in correct])


def something_to_choose(entry: dict[str, Any]) -> bool:
    """Whether an entry of `evaluate_pools` has a question with several candidates, and an n above 1."""
    return any(int(n) > 1 for n in entry["pass_at_n"])


def expected_best(scores: Sequence[Values], correct: Sequence[Values], ns: Sequence[int]) -> np.ndarray:
    """[questions, ns] expected correctness of the best of n; NaN where a question has fewer candidates.

    Raises:
        PQMError: different lengths, or a NaN.
    """
    values = np.empty((len(scores), len(ns)))
    for i, (s, c) in enumerate(_pools(scores, correct)):
        values[i] = _correct_by_rank(s, c) @ _pick(s.size, tuple(ns)) if s.size else np.nan
        values[i, [n > s.size for n in ns]] = np.nan
    return values


def first_best(scores: Sequence[Values], correct: Sequence[Values], ns: Sequence[int]) -> np.ndarray:
    """[questions, ns] correctness of the highest-scored of the first n candidates, and of the first of those with
    equal scores; NaN where a question has fewer. Every n is at least 1.

    This is what PQM's evaluation publishes (arXiv 2410.11287, bon_eval_hf.py of its repository).

    Raises:
        PQMError: different lengths, or a NaN.
    """
    values = np.full((len(scores), len(ns)), np.nan)
    for i, (s, c) in enumerate(_pools(scores, correct)):
        for j, n in enumerate(ns):
            if n <= s.size:
                values[i, j] = c[s[:n].argmax()]
    return values


def _pools(scores: Sequence[Values], correct: Sequence[Values]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Scores and correctness of each question [candidates] float64. Raises PQMError for what does not fit together."""
    if len(scores) != len(correct):
        raise PQMError(f"{len(scores)} questions with scores but {len(correct)} with correctness: pass one each")
    for i, (pool_scores, pool_correct) in enumerate(zip(scores, correct, strict=True)):
        s, c = np.asarray(pool_scores, dtype=np.float64), np.asarray(pool_correct, dtype=np.float64)
        if s.shape != c.shape:
            raise PQMError(f"question {i}: {s.size} scores but {c.size} correctness values")
        if np.isnan(s).any() or np.isnan(c).any():
            raise PQMError(f"question {i}: a score or correctness value is NaN")
        yield s, c


def _correct_by_rank(scores: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """[candidates] correctness from the highest score down; tied candidates share their mean."""
    order = np.argsort(-scores, kind="stable")
    s, c = scores[order], correct[order]
    start = np.flatnonzero(np.r_[True, s[1:] != s[:-1]])
    size = np.diff(np.r_[start, s.size])
    return np.repeat(np.add.reduceat(c, start) / size, size)


@lru_cache(maxsize=256)
def _pick(candidates: int, ns: tuple[int, ...]) -> np.ndarray:
    """[candidates, ns] probability that the best of n drawn candidates is the i-th of the sorted pool.

    r = candidates - i remain from the i-th on. All n are among these with probability C(r, n) / C(candidates, n), and
    then include the i-th with probability n / r.
    """
    r, n = np.arange(candidates, 0, -1)[:, None], np.array(ns)[None]
    inside = np.cumprod(np.maximum(r - n, 0) / r, axis=0)  # reaches 0 at r = n and stays there
    return np.vstack([np.ones_like(n), inside[:-1]]) * n / r
