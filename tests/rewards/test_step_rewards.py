"""Each reward against its definition, in 60 digits, where nothing overflows or is rounded away."""

import math

import pytest
from mpmath import exp, log, mp, mpf, tanh

from pqm_fast.errors import PQMError
from pqm_fast.evaluate import aggregate
from pqm_fast.rewards import REWARDS, step_rewards

CASES = [
    [0.7],
    [3.0, -2.0, 0.5],
    [0.0, 0.0],
    [1.0, 1.0, 1.0, -4.0],
    [1e4, -1e4, 1e4],
    [-1e4],
    [38.0, 40.0, 39.0],  # probabilities that float64 cannot tell from 1
]
ROUNDING = {"rel": 1e-12, "abs": 1e-300}
DEFINITIONS = {
    "difference": lambda q, t: q[t] - (q[t - 1] if t else 0),
    "probability-difference": lambda q, t: sigma(q[t]) - (sigma(q[t - 1]) if t else mpf(1) / 2),
    "log-sigmoid": lambda q, t: log(sigma(q[t])),
    "soft-min": lambda q, t: min_form(q, t, mpf("0.1")),
}
SUMS = {
    "difference": lambda q: q[-1],
    "probability-difference": lambda q: 1 / (1 + math.exp(-q[-1])) - 0.5 if q[-1] > -700 else -0.5,
    "log-sigmoid": lambda q: aggregate(q, "prod"),
}


@pytest.fixture(autouse=True)
def digits():
    with mp.workdps(5000):  # exp(-1e4) has 4343 zeros
        yield


def sigma(x):
    return 1 / (1 + exp(-mpf(x)))


def min_form(q, t, temperature):
    r = [tanh(mpf(x) / 2) for x in q]
    return exp(-r[t] / temperature) / sum(exp(-x / temperature) for x in r) * r[t]


def test_every_reward_is_tested():
    assert set(REWARDS) == set(DEFINITIONS) | {"verified-prefix"}


@pytest.mark.parametrize("how", DEFINITIONS)
@pytest.mark.parametrize("q", CASES, ids=str)
def test_definitions(how, q):
    expected = [float(DEFINITIONS[how](q, t)) for t in range(len(q))]
    assert step_rewards(q, how) == pytest.approx(expected, **ROUNDING)


@pytest.mark.parametrize("how", SUMS)
@pytest.mark.parametrize("q", CASES, ids=str)
def test_sums(how, q):
    assert sum(step_rewards(q, how)) == pytest.approx(SUMS[how](q), rel=1e-12, abs=1e-15)


def test_difference_is_the_default():
    assert step_rewards([2.0, 1.5]) == [2.0, -0.5]


def test_the_sum_of_soft_min_tends_to_the_minimum():
    q = [3.0, -0.5, 0.25, -0.4]
    lowest = math.tanh(-0.25)
    sums = [sum(step_rewards(q, "soft-min", temperature=t)) for t in (1e-4, 1e-2, 0.1, 1.0, 1e6)]
    assert sums[0] == pytest.approx(lowest, abs=1e-12)
    assert sums == sorted(sums)
    assert sums[-1] == pytest.approx(sum(math.tanh(x / 2) for x in q) / 4, abs=1e-5)
    for t, r in enumerate(step_rewards(q, "soft-min", temperature=7.0)):
        assert r == pytest.approx(float(min_form(q, t, 7)), **ROUNDING)


@pytest.mark.parametrize(
    ("q", "numbers", "expected"),
    [
        ([1.0, 2.0, 3.0], {}, [0, 0, 1]),
        ([1.0, -2.0, 3.0], {}, [0.5, 0, 0]),
        ([-1.0, 2.0, 3.0], {}, [0, 0, 0]),  # wrong from the first step on
        ([0.0], {}, [1]),  # not below the threshold
        ([1.0, 2.0, -1.0], {"prefix_reward": 0.3}, [0, 0.3, 0]),
        ([1.0, 2.0, -1.0], {"correct": True}, [0, 0, 1]),  # the checked answer counts more than the model
        ([1.0, 2.0, 3.0], {"correct": False}, [0, 0, 0.5]),
        ([1.0, 2.0, None], {}, [0, 0.5, 0]),  # what was cut off is not verified
        ([None, None], {}, [0, 0]),
        ([1e4, -1e4], {"threshold": -9.9e3}, [0.5, 0]),
    ],
)
def test_verified_prefix(q, numbers, expected):
    assert step_rewards(q, "verified-prefix", **{"threshold": 0.0, **numbers}) == expected


@pytest.mark.parametrize("how", DEFINITIONS)
def test_steps_that_were_cut_off_get_nothing(how):
    q = [1.5, -0.5]
    assert step_rewards([*q, None, None], how) == [*step_rewards(q, how), 0.0, 0.0]
    assert step_rewards([*q, None, 3.0], how) == [*step_rewards(q, how), 0.0, 0.0]
    assert step_rewards([None], how) == [0.0]


@pytest.mark.parametrize(
    ("scores", "how", "numbers", "message"),
    [
        ([], "difference", {}, "no step scores were given"),
        ([1.0], "sum", {}, "unknown step reward 'sum'; choose one of difference, "),
        ([1.0, math.nan], "difference", {}, "must be finite, found nan"),
        ([math.inf], "log-sigmoid", {}, "must be finite, found inf"),
        ([1.0], "difference", {"temperature": 1.0}, "'difference' takes no numbers; found temperature"),
        ([1.0], "soft-min", {"threshold": 1.0}, "'soft-min' takes temperature; found threshold"),
        ([1.0], "soft-min", {"temperature": 0.0}, "temperature: 0.0 was given"),
        ([1.0], "verified-prefix", {}, "threshold: None was given.*calibrate_threshold"),
        ([1.0], "verified-prefix", {"threshold": math.nan}, "threshold: nan was given"),
        ([1.0], "verified-prefix", {"threshold": 0, "prefix_reward": 2}, "prefix_reward: 2 was given"),
    ],
)
def test_bad_input(scores, how, numbers, message):
    with pytest.raises(PQMError, match=message):
        step_rewards(scores, how, **numbers)
