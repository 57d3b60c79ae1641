import math

import numpy as np
import pytest

from pqm_fast.errors import PQMError
from pqm_fast.evaluate import aggregate
from pqm_fast.evaluate.aggregate import aggregate_all, log_weight


@pytest.mark.parametrize(
    ("how", "expected"), [("min", -2.0), ("last", 0.5), ("mean", 0.5), ("max", 3.0), ("prod", None)]
)
def test_definitions(how, expected):
    q = [3.0, -2.0, 0.5]
    if how == "prod":
        expected = math.log(math.prod(1 / (1 + math.exp(-x)) for x in q))
    assert aggregate(q, how) == pytest.approx(expected, abs=1e-12)


def test_min_is_the_default():
    assert aggregate([1.0, -1.0, 2.0]) == -1.0
    assert aggregate([1.0, 0.0, 2.0]) == 0.0  # a score of zero is a score


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_prod_ranks_a_thousand_steps(scale):
    worse = [-scale] * 1000
    better = [*worse[:-1], -scale * 0.999]
    assert math.isfinite(aggregate(worse, "prod"))
    assert aggregate(worse, "prod") < aggregate(better, "prod")
    assert aggregate([1e4] * 1000, "prod") == 0.0


@pytest.mark.parametrize("how", ["min", "last", "mean", "prod", "max"])
def test_without_all_scores_never_preferred(how):
    for missing in ([], [None, None], [5.0, None], [None, 5.0], [5.0, None, 5.0]):
        assert aggregate(missing, how) == float("-inf")
    assert aggregate([-1e4] * 1000, how) > aggregate([], how)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), np.float32("nan")])
@pytest.mark.parametrize("how", ["min", "last", "mean", "prod", "max"])
def test_not_finite_raises_wherever_it_stands(how, bad):
    with pytest.raises(PQMError, match="finite"):
        aggregate([bad, 1.0], how)
    with pytest.raises(PQMError, match="finite"):
        aggregate([bad, None], how)


def test_unknown_aggregator():
    with pytest.raises(PQMError, match=r"'median'.*min, last, mean, prod, max"):
        aggregate([1.0], "median")


@pytest.mark.parametrize("how", ["min", "last", "mean", "prod", "max"])
def test_weight_of_a_vote_is_the_score_as_a_probability(how):
    solutions = [[0.5, -1.0], [2.0], [-3.0, 1.0, 1.0]]
    p = [[1 / (1 + math.exp(-x)) for x in q] for q in solutions]
    expected = {
        "min": [min(own) for own in p],
        "last": [own[-1] for own in p],
        "mean": [1 / (1 + math.exp(-sum(q) / len(q))) for q in solutions],
        "prod": [math.prod(own) for own in p],
        "max": [max(own) for own in p],
    }
    assert np.exp(log_weight(aggregate_all(solutions, how), how)) == pytest.approx(expected[how])
    assert log_weight(aggregate_all([[], [-1e4]], how), how).tolist() == [-math.inf, -1e4]


@pytest.mark.parametrize("how", ["min", "last", "mean", "prod", "max"])
def test_all_at_once_is_one_by_one(how):
    rng = np.random.default_rng(0)
    solutions = [
        [None if rng.random() < 0.3 else float(x) for x in rng.normal(size=rng.integers(0, 5))] for _ in range(200)
    ]
    assert aggregate_all(solutions, how).tolist() == [aggregate(own, how) for own in solutions]
    assert aggregate_all([], how).shape == (0,)
