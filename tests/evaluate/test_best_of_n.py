"""Best-of-N against enumeration of every subset."""

import math
from itertools import combinations, permutations

import numpy as np
import pytest

from pqm_fast.errors import PQMError
from pqm_fast.evaluate import best_of_n, mean_accuracy, pass_at_n
from pqm_fast.evaluate.best_of_n import expected_best, first_best


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


@pytest.mark.parametrize("n", [1, 3, 17, 64])
def test_random_subsets_agree(n):
    rng = np.random.default_rng(n)
    scores, correct = rng.integers(0, 30, 64) / 4, rng.random(64) < 0.3
    draws = [rng.permutation(64)[:n] for _ in range(20_000)]
    tied = [draw[scores[draw] == scores[draw].max()] for draw in draws]
    outcomes = np.array([correct[own].mean() for own in tied])
    error = outcomes.std() / len(outcomes) ** 0.5
    assert best_of_n([scores], [correct], n).mean == pytest.approx(outcomes.mean(), abs=4 * error + 1e-12)


def test_all_sizes_at_once_and_questions_of_different_size():
    rng = np.random.default_rng(0)
    sizes = [1, 5, 8, 5, 0]
    scores = [rng.integers(0, 4, size).astype(float) for size in sizes]
    correct = [rng.integers(0, 2, size).astype(float) for size in sizes]
    found = expected_best(scores, correct, [3, 1, 8])
    for i, size in enumerate(sizes):
        for j, n in enumerate([3, 1, 8]):
            if n > size:
                assert np.isnan(found[i, j])
            else:
                assert found[i, j] == pytest.approx(enumerate_best(scores[i], correct[i], n), abs=1e-12)


def first_of_the_best(scores, correct):
    """By the published loop: sorted from the highest score down, where sorting keeps the order of equal ones."""
    return sorted(zip(scores, correct, strict=True), key=lambda pair: pair[0], reverse=True)[0][1]


@pytest.mark.parametrize("values", [2, 4, 1000], ids=["many ties", "some ties", "no ties"])
def test_best_of_the_first_n(values):
    rng = np.random.default_rng(values)
    sizes, ns = [1, 5, 8, 5, 0], [3, 1, 8]
    scores = [rng.integers(0, values, size).astype(float) for size in sizes]
    scores[2][:] = float("-inf")  # nothing was scored
    correct = [rng.integers(0, 2, size).astype(float) for size in sizes]
    found = first_best(scores, correct, ns)
    assert found.dtype == np.float64
    for i, size in enumerate(sizes):
        for j, n in enumerate(ns):
            if n > size:
                assert np.isnan(found[i, j])
            else:
                assert found[i, j] == first_of_the_best(scores[i][:n], correct[i][:n])


def test_the_expectation_is_the_mean_of_the_first_n_over_all_orders():
    rng = np.random.default_rng(0)
    scores, correct = rng.normal(size=5), rng.integers(0, 2, 5).astype(float)
    orders = [list(order) for order in permutations(range(5))]
    first = first_best([scores[order] for order in orders], [correct[order] for order in orders], [1, 2, 4])
    assert first.mean(axis=0) == pytest.approx(expected_best([scores], [correct], [1, 2, 4])[0], abs=1e-12)


def test_best_and_worst_scorer_bound_all_others():
    rng = np.random.default_rng(1)
    correct = [(rng.random(16) < 0.4).astype(float) for _ in range(20)]
    for n in (1, 2, 7, 16):
        any_right = best_of_n(correct, correct, n)
        all_right = best_of_n([-own for own in correct], correct, n)
        anyone = best_of_n([rng.normal(size=16) for _ in correct], correct, n)
        assert all_right.mean - 1e-12 <= anyone.mean <= any_right.mean + 1e-12
        assert any_right == pass_at_n(correct, n)
        assert all_right.mean == pytest.approx(1 - pass_at_n([1 - own for own in correct], n).mean)


def test_five_hundred_questions():
    rng = np.random.default_rng(0)
    scores, correct = rng.normal(size=(500, 128)), (rng.random((500, 128)) < 0.5).astype(float)
    values = expected_best(scores, correct, range(1, 129))
    assert values[:, 0] == pytest.approx(correct.mean(axis=1))
    assert values[:, -1].tolist() == [own[s.argmax()] for s, own in zip(scores, correct, strict=True)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: best_of_n([[1.0]], [[1]], 2), "question 0 has 1 candidates: n=2"),
        (lambda: best_of_n([[1.0]], [[1]], 0), "n=0"),
        (lambda: best_of_n([[1.0, 2.0]], [[1]], 1), "2 scores but 1"),
        (lambda: best_of_n([[1.0], [2.0]], [[1]], 1), "2 questions"),
        (lambda: best_of_n([[float("nan")]], [[1]], 1), "NaN"),
        (lambda: first_best([[float("nan")]], [[1]], [1]), "NaN"),
        (lambda: first_best([[1.0, 2.0]], [[1]], [1]), "2 scores but 1"),
        (lambda: best_of_n([[1.0], []], [[1], []], 1), "question 1 has 0 candidates"),
        (lambda: best_of_n([], [], 1), "no questions"),
        (lambda: mean_accuracy([[1], []]), "question 1 has no candidates"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(PQMError, match=message):
        call()
