"""Votes against enumeration of every subset, and random subsets against the exact figure."""

import math
from itertools import combinations

import numpy as np
import pytest

from pqm_fast.errors import PQMError
from pqm_fast.evaluate import best_of_n, majority_vote, mean_accuracy, self_consistency, weighted_vote
from pqm_fast.evaluate.vote import expected_votes


def enumerate_vote(groups, correct, weights, n):
    """Fractions of the vote by plain loops; an answer's correctness is the mean of all who give it."""
    right = {g: np.mean([c for h, c in zip(groups, correct, strict=True) if h == g]) for g in groups}
    total = []
    for subset in combinations(range(len(groups)), n):
        sums: dict[int, float] = {}
        for i in subset:
            if groups[i] >= 0 and weights[i] > 0:
                sums[groups[i]] = sums.get(groups[i], 0) + weights[i]
        most = max(sums.values(), default=0)
        winners = [right[g] for g, own in sums.items() if math.isclose(own, most, rel_tol=1e-12)]
        total.append(sum(winners) / len(winners) if winners else 0.0)
    return sum(total) / len(total)


@pytest.mark.parametrize("answers", [1, 2, 3, 9])
@pytest.mark.parametrize("seed", range(3))
def test_every_subset_is_counted_where_they_are_few(seed, answers):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 9))
    groups = (rng.integers(0, answers + 1, size) - 1).tolist()
    correct = [float(g % 2 == 0) for g in groups]
    weights = rng.integers(1, 4, size) / 4
    for n in range(1, size + 1):
        plain, weighted = (
            self_consistency([groups], [correct], n),
            weighted_vote([groups], [correct], [np.log(weights)], n),
        )
        assert plain.mean == pytest.approx(enumerate_vote(groups, correct, [1] * size, n), abs=1e-12)
        assert weighted.mean == pytest.approx(enumerate_vote(groups, correct, weights, n), abs=1e-12)
        assert plain.sampling_error == weighted.sampling_error == 0.0


def test_of_one_and_of_all():
    rng = np.random.default_rng(0)
    groups = [rng.integers(0, 9, 60).tolist() for _ in range(30)]
    correct = [[float(g == 0) for g in own] for own in groups]
    assert self_consistency(groups, correct, 1).mean == pytest.approx(mean_accuracy(correct).mean)
    whole = self_consistency(groups, correct, 60)
    assert whole.mean == pytest.approx(majority_vote(groups, correct).mean, abs=1e-12)
    assert whole.sampling_error == 0.0


def test_random_subsets_err_as_they_say():
    """Twelve of sixteen candidates: 1,820 subsets, counted by more draws than that, or sampled."""
    rng = np.random.default_rng(0)
    groups = [rng.choice(5, 16, p=[0.35, 0.35, 0.1, 0.1, 0.1]).tolist() for _ in range(10)]
    correct = [[float(g == 0) for g in own] for own in groups]
    exact = self_consistency(groups, correct, 12, draws=1820)
    assert exact.sampling_error == 0.0
    assert exact.mean == pytest.approx(
        np.mean([enumerate_vote(g, c, [1] * 16, 12) for g, c in zip(groups, correct, strict=True)]), abs=1e-12
    )
    sampled = [self_consistency(groups, correct, 12, draws=50, seed=seed) for seed in range(200)]
    errors = np.array([estimate.mean - exact.mean for estimate in sampled])
    said = np.mean([estimate.sampling_error for estimate in sampled])
    assert 0 < said < 0.05
    assert abs(errors.mean()) < 4 * said / 200**0.5
    assert errors.std() == pytest.approx(said, rel=0.2)


def test_seed_repeats_and_differs():
    rng = np.random.default_rng(0)
    groups, correct = [rng.integers(0, 5, 40).tolist()], [rng.integers(0, 2, 40).tolist()]
    first, again, other = (self_consistency(groups, correct, 7, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.mean != other.mean


def test_the_same_subsets_for_every_weighting():
    rng = np.random.default_rng(0)
    groups = [rng.integers(0, 5, 40).tolist() for _ in range(3)]
    correct = [[float(g == 0) for g in own] for own in groups]
    flat, scaled = [np.zeros(40)] * 3, [np.full(40, -1e4)] * 3  # as weights they would be 0
    values, variances = expected_votes(groups, correct, [flat, scaled], [3, 40, 41])
    assert (values[0, :, :2] == values[1, :, :2]).all()
    assert np.isnan(values[:, :, 2]).all()
    assert (variances[:, :, 1] == 0).all()


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4, 1e6])
def test_weights_that_underflow_still_decide(scale):
    """exp(-1e4) is 0: only the ratios within a subset count."""
    groups, correct = [[0, 1, 1, 2]], [[1.0, 0.0, 0.0, 0.0]]
    weights = [[-scale, -2 * scale, -2 * scale, -3 * scale]]
    assert weighted_vote(groups, correct, weights, 4).mean == pytest.approx(1.0)
    # without the first, answer 1 is ahead of answer 2
    assert weighted_vote([[1, 1, 2]], [[1.0, 1.0, 0.0]], [[-2e4, -2e4, -3e4]], 3).mean == 1.0


def test_one_huge_weight_makes_it_best_of_n():
    rng = np.random.default_rng(0)
    groups = [rng.integers(0, 5, 10).tolist() for _ in range(4)]
    correct = [[float(g == 0) for g in own] for own in groups]
    scores = [rng.permutation(10) * 1000.0 for _ in groups]
    for n in (1, 2, 9):
        assert weighted_vote(groups, correct, scores, n, draws=1000).mean == pytest.approx(
            best_of_n(scores, correct, n).mean
        )


def test_no_answer_and_no_score():
    nothing, some = float("-inf"), 0.0
    assert weighted_vote([[-1, 0]], [[1.0, 0.0]], [[some, some]], 2).mean == 0.0
    assert weighted_vote([[0, 1]], [[1.0, 0.0]], [[some, nothing]], 2).mean == 1.0
    assert weighted_vote([[0, 1]], [[1.0, 0.0]], [[nothing, nothing]], 2).mean == 0.5  # nobody is preferred
    assert weighted_vote([[0, -1]], [[1.0, 0.0]], [[nothing, some]], 2).mean == 1.0
    assert self_consistency([[-1, -1]], [[1.0, 1.0]], 2).mean == 0.0  # no vote: wrong


def test_one_candidate():
    one = self_consistency([[0]], [[1.0]], 1)
    assert (one.mean, one.low, one.sampling_error) == (1.0, None, 0.0)


def test_ties_do_not_hang_on_rounding():
    """0.1 + 0.2 and 0.3 differ in the last bit; the answers are tied all the same."""
    weights = np.log([0.1, 0.2, 0.3])
    assert weighted_vote([[0, 0, 1]], [[1.0, 1.0, 0.0]], [weights], 3).mean == 0.5


@pytest.mark.parametrize(
    ("groups", "correct", "first", "share"),
    [
        ([0, 1, 1], [1, 0, 0], 0, 0),
        ([0, 1], [1, 0], 1, 0.5),
        ([1, 0], [1, 0], 1, 0.5),  # first by appearance, not by class number
        ([0, 1, 2, 2, 1], [0, 0, 1, 1, 0], 0, 0.5),
        ([-1, -1, 0], [0, 0, 1], 1, 1),  # no answer, no vote
        ([-1, -1], [0, 0], 0, 0),
        ([0, 0, 1], [1, 0, 0], 0.5, 0.5),  # who give the same answer are not all called right
    ],
)
def test_majority_vote(groups, correct, first, share):
    assert majority_vote([groups], [correct], ties="first").mean == first
    assert majority_vote([groups], [correct]).mean == share


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: majority_vote([[0]], [[1]], ties="random"), "random"),
        (lambda: majority_vote([[0, 1]], [[1]]), "2 answers but 1"),
        (lambda: majority_vote([[0], []], [[1], []]), "question 1 has no candidates"),
        (lambda: majority_vote([[0]], []), "1 questions with answers but 0"),
        (lambda: majority_vote([], []), "no questions"),
        (lambda: self_consistency([[0]], [[1]], 2), "question 0 has 1 candidates: n=2"),
        (lambda: self_consistency([[]], [[]], 1), "question 0 has 0 candidates"),
        (lambda: self_consistency([[0]], [[1]], 1, draws=1), "draws=1"),
        (lambda: self_consistency([[0]], [[1]], 1, seed=-1), "seed=-1"),
        (lambda: weighted_vote([[0]], [[1]], [[0.0, 0.0]], 1), "1 answers but 2 weights"),
        (lambda: weighted_vote([[0]], [[1]], [[float("nan")]], 1), "NaN or infinite"),
        (lambda: weighted_vote([[0]], [[1]], [[float("inf")]], 1), "NaN or infinite"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(PQMError, match=message):
        call()
