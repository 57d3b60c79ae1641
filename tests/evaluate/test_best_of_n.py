"""Best-of-N against enumeration of every subset."""

import math
from itertools import combinations

import numpy as np
import pytest

from pqm_fast.errors import PQMError
from pqm_fast.evaluate import best_of_n, majority_vote, mean_accuracy, pass_at_n


def enumerate_best(scores, correct, n):
    """The mean over all subsets of the mean correctness of those tied for the highest score."""
    total = []
    for subset in combinations(range(len(scores)), n):
        best = max(scores[i] for i in subset)
        winners = [correct[i] for i in subset if scores[i] == best]
        total.append(sum(winners) / len(winners))
    return sum(total) / len(total)


@pytest.mark.parametrize("values", [2, 4, 1000], ids=["many ties", "some ties", "no ties"])
@pytest.mark.parametrize("seed", range(4))
def test_best_of_n_is_the_mean_over_all_subsets(seed, values):
    rng = np.random.default_rng(seed)
    pool = int(rng.integers(1, 9))
    scores = [float(x) for x in rng.integers(0, values, pool)]
    scores[0] = float("-inf")  # a solution without a scored step
    correct = [float(x) for x in rng.integers(0, 2, pool)]
    for n in range(1, pool + 1):
        expected = enumerate_best(scores, correct, n)
        assert best_of_n([scores], [correct], n).mean == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_pass_at_n_is_the_unbiased_estimator(seed):
    rng = np.random.default_rng(seed)
    correct = rng.integers(0, 2, 7).astype(bool).tolist()
    for n in range(1, 8):
        expected = 1 - math.comb(7 - sum(correct), n) / math.comb(7, n)
        subsets = [any(s) for s in combinations(correct, n)]
        assert pass_at_n([correct], n).mean == pytest.approx(expected, abs=1e-12)
        assert np.mean(subsets) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 100, 5000, 9999, 10_000])
def test_ten_thousand_candidates(n):
    rng = np.random.default_rng(0)
    scores, correct = rng.normal(size=10_000), rng.random(10_000) < 0.01
    # independent: exact rational binomials, candidate by candidate
    order = np.argsort(-scores)
    weight, total, r = 1.0, 0.0, 10_000
    for i in order:
        if r < n:
            break
        total += weight * n / r * bool(correct[i])
        weight *= (r - n) / r
        r -= 1
    found = best_of_n([scores], [correct], n).mean
    assert found == pytest.approx(total, abs=1e-12)
    assert best_of_n([scores], [np.ones(10_000)], n).mean == pytest.approx(1, abs=1e-10)
    exact = 1 - math.comb(10_000 - int(correct.sum()), n) / math.comb(10_000, n)
    assert pass_at_n([correct], n).mean == pytest.approx(exact, abs=1e-10)


def test_order_of_the_candidates_does_not_matter():
    scores, correct = [1.0, 1.0, 0.0, 2.0], [1, 0, 0, 1]
    turned = best_of_n([scores[::-1]], [correct[::-1]], 2)
    assert best_of_n([scores], [correct], 2).mean == pytest.approx(turned.mean, abs=1e-15)


def test_interval_is_over_questions():
    estimate = mean_accuracy([[1, 1], [0, 0], [1, 0], [0, 1]])
    half = 1.96 * np.std([1, 0, 0.5, 0.5], ddof=1) / 2
    assert estimate.mean == 0.5
    assert (estimate.low, estimate.high) == pytest.approx((0.5 - half, 0.5 + half))
    assert estimate.questions == 4
    assert (lambda e: (e.low > 0, e.high))(mean_accuracy([[1]] * 9 + [[0]])) == (True, 1.0)
    assert (lambda e: (e.low, e.high < 1))(mean_accuracy([[0]] * 9 + [[1]])) == (0.0, True)
    equal = mean_accuracy([[1], [1]])
    assert equal.low == equal.mean == equal.high == 1
    one = mean_accuracy([[1, 0]])
    assert (one.mean, one.low, one.high) == (0.5, None, None)


@pytest.mark.parametrize(
    ("groups", "correct", "first", "share"),
    [
        ([0, 1, 1], [1, 0, 0], 0, 0),
        ([0, 1], [1, 0], 1, 0.5),
        ([1, 0], [1, 0], 1, 0.5),  # first by appearance, not by class number
        ([0, 1, 2, 2, 1], [0, 0, 1, 1, 0], 0, 0.5),
        ([-1, -1, 0], [0, 0, 1], 1, 1),  # no answer, no vote
        ([-1, -1], [0, 0], 0, 0),
    ],
)
def test_majority_vote(groups, correct, first, share):
    assert majority_vote([groups], [correct], ties="first").mean == first
    assert majority_vote([groups], [correct]).mean == share


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: best_of_n([[1.0]], [[1]], 2), "question 0 has 1 candidates: n=2"),
        (lambda: best_of_n([[1.0]], [[1]], 0), "n=0"),
        (lambda: best_of_n([[1.0, 2.0]], [[1]], 1), "2 scores but 1"),
        (lambda: best_of_n([[1.0], [2.0]], [[1]], 1), "2 questions"),
        (lambda: best_of_n([[float("nan")]], [[1]], 1), "NaN"),
        (lambda: best_of_n([], [], 1), "no questions"),
        (lambda: majority_vote([[0]], [[1]], ties="random"), "random"),
        (lambda: majority_vote([[0, 1]], [[1]]), "2 answers but 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(PQMError, match=message):
        call()
