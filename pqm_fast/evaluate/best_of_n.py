"""Best-of-N and its yardsticks, as exact expectations over all subsets of a pool of candidates.

Every function takes one entry per question and returns the mean over questions with its 95% interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pqm_fast.errors import PQMError

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean of values in [0, 1] over `questions`, and its 95% interval: mean +- 1.96 standard errors.

    The interval is clipped to [0, 1], and None for one question. It is degenerate (low = mean = high) when all
    values are equal: then it says nothing of the uncertainty, which is largest for few questions.
    """

    mean: float
    low: float | None
    high: float | None
    questions: int

    @classmethod
    def of(cls, values: Values) -> "Estimate":
        """From one value in [0, 1] per question; PQMError if there is none."""
        x = np.asarray(values, dtype=np.float64)
        if not x.size:
            raise PQMError("no questions to average over")
        mean = float(x.mean())
        if x.size == 1:
            return cls(mean, None, None, 1)
        half = 1.96 * float(x.std(ddof=1)) / x.size**0.5
        return cls(mean, max(mean - half, 0.0), min(mean + half, 1.0), x.size)


def best_of_n(scores: Sequence[Values], correct: Sequence[Values], n: int) -> Estimate:
    """Expected correctness of the highest-scored of n candidates drawn without replacement.

    The expectation is over all subsets of size n, in closed form: no sampling and no dependence on the order
    of the candidates. Candidates with equal scores are equally likely to be picked.

    Args:
        scores: per question, one score per candidate (`aggregate`); -inf is allowed.
        correct: per question, the candidates' correctness in [0, 1].
        n: subset size, 1 <= n <= the number of candidates of every question.

    Raises:
        PQMError: n out of range, different lengths, a NaN, or no questions.
    """
    if len(scores) != len(correct):
        raise PQMError(f"{len(scores)} questions with scores but {len(correct)} with correctness: pass one each")
    return Estimate.of([_expected_best(s, c, n, i) for i, (s, c) in enumerate(zip(scores, correct, strict=True))])


def pass_at_n(correct: Sequence[Values], n: int) -> Estimate:
    """Probability that n candidates drawn without replacement hold a correct one, 1 - C(wrong, n)/C(all, n).

    The unbiased estimator of arXiv 2107.03374: Best-of-N with an oracle for a scorer. Raises as `best_of_n`.
    """
    return best_of_n(correct, correct, n)


def mean_accuracy(correct: Sequence[Values]) -> Estimate:
    """Accuracy of one candidate drawn at random; every question weighs the same."""
    return Estimate.of([float(np.mean(c)) for c in correct])


def majority_vote(groups: Sequence[Sequence[int]], correct: Sequence[Values], ties: str = "share") -> Estimate:
    """Correctness of the most frequent answer in the whole pool.

    Args:
        groups: per question, each candidate's answer class (`group_answers`); -1 for no answer, which does
            not vote. A question without any vote counts as wrong.
        correct: per question, the candidates' correctness in [0, 1].
        ties: `share`: the tied answers count evenly, as candidates with equal scores do in `best_of_n`; `first`:
            the answer given first wins, which depends on the order of the candidates.

    Raises:
        PQMError: an unknown `ties`, different lengths, or no questions.
    """
    if ties not in ("first", "share"):
        raise PQMError(f"ties={ties!r}: choose 'first' or 'share'")
    if len(groups) != len(correct):
        raise PQMError(f"{len(groups)} questions with answers but {len(correct)} with correctness: pass one each")
    return Estimate.of([_vote(g, c, ties, i) for i, (g, c) in enumerate(zip(groups, correct, strict=True))])


def _expected_best(scores: Values, correct: Values, n: int, question: int) -> float:
    s, c = np.asarray(scores, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if s.shape != c.shape:
        raise PQMError(f"question {question}: {s.size} scores but {c.size} correctness values")
    if not 1 <= n <= s.size:
        raise PQMError(f"question {question} has {s.size} candidates: n={n} must be between 1 and that")
    if np.isnan(s).any() or np.isnan(c).any():
        raise PQMError(f"question {question}: a score or correctness value is NaN")
    order = np.argsort(-s, kind="stable")
    s, c = s[order], c[order]
    # pick[i]: probability that the best drawn is the i-th of the sorted pool. With r = N - i candidates
    # left from there on, all n are among those with probability C(r, n) / C(N, n), and include i with n / r.
    r = np.arange(s.size, 0, -1)
    inside = np.r_[1.0, np.cumprod((r - n) / r)[:-1]]  # reaches 0 at r < n and stays there
    pick = inside * n / r
    # Equal scores share their probability evenly: sum over a run of ties, times its mean correctness.
    starts = np.flatnonzero(np.r_[True, s[1:] != s[:-1]])
    sizes = np.diff(np.r_[starts, s.size])
    return float((np.add.reduceat(pick, starts) * np.add.reduceat(c, starts) / sizes).sum())


def _vote(groups: Sequence[int], correct: Values, ties: str, question: int) -> float:
    if len(groups) != len(correct):
        raise PQMError(f"question {question}: {len(groups)} answers but {len(correct)} correctness values")
    members: dict[int, list[float]] = {}
    for group, value in zip(groups, correct, strict=True):
        if group >= 0:
            members.setdefault(group, []).append(float(value))
    most = max(map(len, members.values()), default=0)
    winners = [sum(values) / most for values in members.values() if len(values) == most]
    if not winners:
        return 0.0
    return winners[0] if ties == "first" else sum(winners) / len(winners)
