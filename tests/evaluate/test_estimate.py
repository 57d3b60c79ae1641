"""Intervals of a mean over questions: closed forms, and how often they hold."""

import numpy as np
import pytest

from pqm_fast.errors import PQMError
from pqm_fast.evaluate.estimate import Estimate, Z


@pytest.mark.parametrize(("right", "count"), [(0, 5), (1, 5), (5, 5), (37, 40), (500, 1000)])
def test_wilson_for_right_and_wrong(right, count):
    """The two roots of (mean - p)^2 = z^2 p (1 - p) / n, which is how Wilson's interval is defined."""
    found = Estimate.of([1] * right + [0] * (count - right))
    mean, k = right / count, Z * Z / count
    low, high = sorted(np.roots([1 + k, -(2 * mean + k), mean * mean]).real)
    assert found.mean == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert found.questions == count


def test_many_questions_give_the_normal_interval():
    values = np.random.default_rng(0).beta(3, 1, 100_000)
    found, half = Estimate.of(values), Z * values.std() / 100_000**0.5
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=half * 0.01)


def test_narrower_for_values_between():
    wide, narrow = Estimate.of([1, 0] * 20), Estimate.of([0.6, 0.4] * 20)
    assert narrow.high - narrow.low < 0.3 * (wide.high - wide.low)
    assert (lambda e: (e.low, e.high))(Estimate.of([0.5] * 9)) == pytest.approx((0.5, 0.5))


def test_never_outside_and_never_empty_at_the_ends():
    assert (lambda e: (e.low > 0.5, e.high))(Estimate.of([1] * 9)) == (True, 1.0)
    assert (lambda e: (e.low, e.high < 0.5))(Estimate.of([0] * 9)) == (0.0, True)
    assert Estimate.of([1 + 1e-15] * 9).mean == 1.0


def test_one_question_has_no_interval_and_none_no_mean():
    one = Estimate.of([0.5])
    assert (one.mean, one.low, one.high, one.questions) == (0.5, None, None, 1)
    with pytest.raises(PQMError, match="no questions"):
        Estimate.of([])


def test_sampling_error_is_that_of_the_mean():
    assert Estimate.of([0, 1]).sampling_error == 0.0
    assert Estimate.of([0, 1, 1], [0.04, 0.0, 0.05]).sampling_error == pytest.approx(0.3 / 3)


@pytest.mark.parametrize("accuracy", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("questions", [30, 100, 400])
def test_holds_as_often_as_it_says(questions, accuracy):
    """The normal interval, and the bootstrap, hold in 47% of 30 questions at accuracy 0.98."""
    rng = np.random.default_rng(questions)
    found = [Estimate.of((rng.random(questions) < accuracy).astype(float)) for _ in range(2000)]
    share = np.mean([e.low <= accuracy <= e.high for e in found])
    assert 0.925 < share < 0.985
