import math

import numpy as np
import pytest

from pqm_fast.errors import PQMError
from pqm_fast.evaluate import aggregate
from pqm_fast.evaluate.aggregate import AGGREGATORS, aggregate_all, log_weight

Q = [3.0, -2.0, 0.5]
PROBABILITY = [1 / (1 + math.exp(-x)) for x in Q]
DEFINITIONS = {
    "min": -2.0,
    "last": 0.5,
    "mean": 0.5,
    "softmin": -math.log((math.exp(-3.0) + math.exp(2.0) + math.exp(-0.5)) / 3),
    "prod": math.log(math.prod(PROBABILITY)),
    "max": 3.0,
}


@pytest.mark.parametrize(("how", "expected"), DEFINITIONS.items())
def test_definitions(how, expected):
    q = Q
    assert aggregate(q, how) == pytest.approx(expected, abs=1e-12)


def test_min_is_the_default():
    assert aggregate([1.0, -1.0, 2.0]) == -1.0
    assert aggregate([1.0, 0.0, 2.0]) == 0.0  # a score of zero is a score


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1.0, 7.0, 1e3])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_softmin_is_its_definition_at_every_scale(temperature, scale):
    """In 60 digits, where nothing overflows or is rounded away."""
    from mpmath import exp, log, mp

    rng = np.random.default_rng(0)
    with mp.workdps(60):
        for length in (1, 2, 5, 300):
            q = [float(x) for x in scale * rng.uniform(-1, 1, length)]
            q[-1] = q[0]  # ties
            expected = float(-temperature * log(sum(exp(-mp.mpf(x) / temperature) for x in q) / length))
            assert aggregate(q, "softmin", temperature) == pytest.approx(expected, rel=1e-13, abs=1e-14 * scale)
            # equal scores: that score, whatever their number
            assert aggregate([q[0]] * length, "softmin", temperature) == q[0]


def test_softmin_lies_between_min_and_mean():
    rng = np.random.default_rng(1)
    for q in rng.normal(0, 3, (50, 6)).tolist():
        rising = [aggregate(q, "softmin", temperature) for temperature in (1e-3, 0.03, 0.3, 1, 3, 30, 1e3)]
        assert min(q) <= rising[0] <= rising[-1] <= aggregate(q, "mean")
        assert rising == sorted(rising)
        assert rising[0] == pytest.approx(min(q), abs=1e-3 * math.log(6) + 1e-12)
        assert rising[-1] == pytest.approx(np.mean(q), abs=np.var(q) / 1e3)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperature_must_be_above_0(temperature):
    with pytest.raises(PQMError, match=r"temperature: .* was given; it must be a finite number above 0"):
        aggregate([1.0], "softmin", temperature)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_prod_ranks_a_thousand_steps(scale):
    worse = [-scale] * 1000
    better = [*worse[:-1], -scale * 0.999]
    assert math.isfinite(aggregate(worse, "prod"))
    assert aggregate(worse, "prod") < aggregate(better, "prod")
    assert aggregate([1e4] * 1000, "prod") == 0.0


@pytest.mark.parametrize("how", AGGREGATORS)
def test_without_all_scores_never_preferred(how):
    for missing in ([], [None, None], [5.0, None], [None, 5.0], [5.0, None, 5.0]):
        assert aggregate(missing, how) == float("-inf")
    assert aggregate([-1e4] * 1000, how) > aggregate([], how)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), np.float32("nan")])
@pytest.mark.parametrize("how", AGGREGATORS)
def test_not_finite_raises_wherever_it_stands(how, bad):
    with pytest.raises(PQMError, match="finite"):
        aggregate([bad, 1.0], how)
    with pytest.raises(PQMError, match="finite"):
        aggregate([bad, None], how)


def test_unknown_aggregator():
    with pytest.raises(PQMError, match=r"'median'.*min, last, mean, softmin, prod, max"):
        aggregate([1.0], "median")


@pytest.mark.parametrize("how", AGGREGATORS)
def test_weight_of_a_vote_is_the_score_as_a_probability(how):
    solutions = [[0.5, -1.0], [2.0], [-3.0, 1.0, 1.0]]
    p = [[1 / (1 + math.exp(-x)) for x in q] for q in solutions]
    expected = {
        "min": [min(own) for own in p],
        "last": [own[-1] for own in p],
        "mean": [1 / (1 + math.exp(-sum(q) / len(q))) for q in solutions],
        "softmin": [1 / (1 + math.fsum(math.exp(-x) for x in q) / len(q)) for q in solutions],  # at temperature 1
        "prod": [math.prod(own) for own in p],
        "max": [max(own) for own in p],
    }
    assert np.exp(log_weight(aggregate_all(solutions, how), how)) == pytest.approx(expected[how])
    assert log_weight(aggregate_all([[], [-1e4]], how), how).tolist() == [-math.inf, -1e4]


@pytest.mark.parametrize("how", AGGREGATORS)
def test_all_at_once_is_one_by_one(how):
    rng = np.random.default_rng(0)
    solutions = [
        [None if rng.random() < 0.3 else float(x) for x in rng.normal(size=rng.integers(0, 5))] for _ in range(200)
    ]
    assert aggregate_all(solutions, how).tolist() == [aggregate(own, how) for own in solutions]
    assert aggregate_all([], how).shape == (0,)
