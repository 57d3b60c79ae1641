"""Votes on the final answer: all candidates, n of them (self-consistency), and votes weighted by a score.

There is no closed form for the answer that wins among n random candidates. Where there are at most `draws` subsets of
that size, all of them are counted and the figure is exact; otherwise `draws` random subsets are counted, the same
for every weighting.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np

from pqm_fast.errors import PQMError
from pqm_fast.evaluate.estimate import Estimate, Values

Groups = Sequence[Sequence[int] | np.ndarray]
DRAWS = 200


def majority_vote(groups: Groups, correct: Sequence[Values], ties: str = "share") -> Estimate:
    """Correctness of the most frequent answer in the whole pool.

    Args:
        groups: per question, each candidate's answer class (`group_answers`); -1 for no answer, which does
            not vote. A question without any vote counts as wrong.
        correct: per question, the candidates' correctness in [0, 1]. The correctness of an answer is the mean over the
            candidates with that answer.
        ties: `share`: the tied answers count evenly, as candidates with equal scores do in `best_of_n`; `first`:
            the answer that comes first wins, which depends on the order of the candidates.

    Raises:
        PQMError: an unknown `ties`, different lengths, an empty pool, or no questions.
    """
    if ties not in ("first", "share"):
        raise PQMError(f"ties={ties!r}: choose 'first' or 'share'")
    values = []
    for pool_groups, pool_correct in _pools(groups, correct):
        answer, answer_correct = _answers(pool_groups, pool_correct)
        winners = answer_correct[np.flatnonzero(_is_most(np.bincount(answer, minlength=answer_correct.size + 1)[:-1]))]
        values.append(winners[0] if ties == "first" and winners.size else winners.mean() if winners.size else 0.0)
    return Estimate.of(values)


def self_consistency(groups: Groups, correct: Sequence[Values], n: int, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Expected correctness of the most frequent answer among n candidates drawn without replacement.

    Tied answers share the vote. `groups` and `correct` are those of `majority_vote`.

    Raises:
        PQMError: n out of range, draws < 2, seed < 0, different lengths, an empty pool, or no questions.
    """
    return weighted_vote(groups, correct, [np.zeros(len(pool)) for pool in groups], n, draws, seed)


def weighted_vote(
    groups: Groups, correct: Sequence[Values], log_weights: Sequence[Values], n: int, draws: int = DRAWS, seed: int = 0
) -> Estimate:
    """Expected correctness of the answer with the highest sum of weights, otherwise as `self_consistency`.

    Args:
        log_weights: per question, the logarithm of each candidate's weight (`log_weight`). A candidate with -inf does
            not vote; where that is so for all candidates with an answer, all have the same weight.

    Raises:
        PQMError: as `self_consistency`; also for a weight that is NaN or infinite.
    """
    for question, pool in enumerate(groups):
        if not 1 <= n <= len(pool):
            raise PQMError(f"question {question} has {len(pool)} candidates: n={n} must be between 1 and that")
    values, variances = expected_votes(groups, correct, [log_weights], [n], draws, seed)
    return Estimate.of(values[0, :, 0], variances[0, :, 0])


def expected_votes(
    groups: Groups,
    correct: Sequence[Values],
    weightings: Sequence[Sequence[Values]],
    ns: Sequence[int],
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Expected correctness of the vote of n for several weightings, over the same subsets.

    Returns:
        [weightings, questions, ns] float64 values, and their sampling variance; NaN where a question has fewer than n
        candidates.

    Raises:
        PQMError: draws < 2, seed < 0, different lengths, an empty pool, or a weight that is NaN or infinite.
    """
    if draws < 2:
        raise PQMError(f"draws={draws}: the sampling error needs at least 2")
    if seed < 0:
        raise PQMError(f"seed={seed}: use 0 or more")
    shape = (len(weightings), len(groups), len(ns))
    values, variances = np.full(shape, np.nan), np.full(shape, np.nan)
    for i, (pool_groups, pool_correct) in enumerate(_pools(groups, correct)):
        answer, answer_correct = _answers(pool_groups, pool_correct)
        log_weight = np.array([weighting[i] for weighting in weightings], dtype=np.float64)
        if log_weight.shape[1:] != answer.shape:
            raise PQMError(f"question {i}: {answer.size} answers but {log_weight.shape[1]} weights")
        if np.isnan(log_weight).any() or np.isposinf(log_weight).any():
            raise PQMError(f"question {i}: the logarithm of a weight is NaN or infinite")
        log_weight[:, answer == answer_correct.size] = -np.inf  # no answer, no vote
        rng = np.random.default_rng([seed, i])
        shuffled = None
        for j, n in enumerate(ns):
            if n > answer.size:
                continue
            if exact := comb(answer.size, n) <= draws:
                subsets = _all_subsets(answer.size, n)
            else:
                if shuffled is None:
                    shuffled = rng.permuted(np.tile(np.arange(answer.size), (draws, 1)), axis=1)
                subsets = shuffled[:, :n]
            outcome = _vote(answer[subsets], log_weight[:, subsets], answer_correct)
            values[:, i, j] = outcome.mean(axis=1)
            variances[:, i, j] = 0.0 if exact else outcome.var(axis=1, ddof=1) / draws
    return values, variances


def _vote(answer: np.ndarray, log_weight: np.ndarray, answer_correct: np.ndarray) -> np.ndarray:
    """[weightings, subsets] correctness of the winners, from [subsets, n] answers and their weights."""
    top = log_weight.max(axis=-1, keepdims=True)
    # Only ratios within a subset matter. Dividing by its largest weight keeps them all from underflowing.
    weight = np.where(np.isneginf(top), 1.0, np.exp(log_weight - np.where(np.isneginf(top), 0.0, top)))
    slots = answer_correct.size + 1  # the last slot is for no answer
    row = np.arange(weight.shape[0] * weight.shape[1]).reshape(*weight.shape[:2], 1) * slots
    totals = np.bincount((row + answer).ravel(), weight.ravel(), minlength=row.size * slots)
    wins = _is_most(totals.reshape(*weight.shape[:2], slots)[..., :-1])
    return wins @ answer_correct / np.maximum(wins.sum(axis=-1), 1)


def _is_most(totals: np.ndarray) -> np.ndarray:
    """Which totals along the last axis are the highest and not 0. Equal sums may differ by rounding."""
    return (totals > 0) & (totals >= totals.max(axis=-1, keepdims=True, initial=0.0) * (1 - 1e-12))


def _pools(groups: Groups, correct: Sequence[Values]) -> list[tuple[np.ndarray, np.ndarray]]:
    if len(groups) != len(correct):
        raise PQMError(f"{len(groups)} questions with answers but {len(correct)} with correctness: pass one each")
    for question, (pool_groups, pool_correct) in enumerate(zip(groups, correct, strict=True)):
        if len(pool_groups) != len(pool_correct):
            raise PQMError(
                f"question {question}: {len(pool_groups)} answers but {len(pool_correct)} correctness values"
            )
        if not len(pool_groups):
            raise PQMError(f"question {question} has no candidates")
    return [(np.asarray(g), np.asarray(c, dtype=np.float64)) for g, c in zip(groups, correct, strict=True)]


def _answers(groups: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[candidates] each candidate's answer, numbered by first appearance, with the highest number for no answer; and
    [answers] each answer's correctness."""
    distinct = list(dict.fromkeys(groups[groups >= 0].tolist()))
    number = {group: k for k, group in enumerate(distinct)}
    answer = np.array([number.get(group, len(distinct)) for group in groups.tolist()])
    counts = np.bincount(answer, minlength=len(distinct))[: len(distinct)]
    return answer, np.bincount(answer, correct, minlength=len(distinct))[: len(distinct)] / counts


@lru_cache(maxsize=256)
def _all_subsets(candidates: int, n: int) -> np.ndarray:
    return np.array(list(combinations(range(candidates), n)))
