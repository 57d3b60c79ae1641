import random
from itertools import pairwise

import pytest

from pqm_fast.arithmetic.policies import make_policies
from pqm_fast.arithmetic.problems import MAX_PROBLEMS, Problem, Step, apply, draw_problems, step_labels
from pqm_fast.errors import PQMError


def true_values_from_text(text: str) -> dict[str, int]:
    """Reads a problem's text by itself: the value after each letter."""
    start, *rest = text.split()
    value, after = int(start), {}
    for letter, operand in zip(rest[::2], rest[1::2], strict=True):
        value += int(operand)
        after[letter] = value
    return after


def test_text_and_values_of_the_documented_example():
    problem = Problem(7, (-2, 1, 5))
    assert problem.text == "7 a -2 b +1 c +5"
    assert problem.true_values == (5, 6, 11)
    assert problem.answer == 11
    assert Step("a", 7, -2, 5).text == "a: 7 -2 =5"
    assert Step("b", -1, 3, -4).text == "b: -1 +3 =-4"


def test_labels_follow_the_value_alone():
    problem = Problem(5, (2, -3, 1))  # true values 7, 4, 5
    steps = [Step("a", 5, -2, 3), Step("b", 3, -3, 0), Step("c", 4, 1, 5)]
    assert step_labels(problem, steps) == [False, False, True]
    # Without step b the rest keep their letters.
    assert step_labels(problem, [Step("a", 5, 2, 7), Step("c", 7, 1, 8)]) == [True, False]
    assert step_labels(problem, [Step("c", 4, 1, 5)]) == [True]


def test_labels_are_exact_by_an_independent_reading_of_the_text():
    """Also checks that the answer is right exactly if the last step is: no policy just stops early."""
    seen = {True: 0, False: 0}
    recovered = 0
    for problem in draw_problems(400, random.Random(1)):
        truth = true_values_from_text(problem.text)
        for policy in make_policies(3).values():
            steps = policy.solve(problem, random.Random(problem.text))
            labels = step_labels(problem, steps)
            for step, label in zip(steps, labels, strict=True):
                letter, _, _, result = step.text.split()
                assert label is (int(result.removeprefix("=")) == truth[letter.removesuffix(":")])
                seen[label] += 1
            recovered += any(later and not earlier for earlier, later in pairwise(labels))
            assert labels[-1] == (steps[-1].value == list(truth.values())[-1])
    assert min(seen.values()) > 500
    assert recovered > 20


def test_problems_are_distinct_in_bounds_and_of_every_length():
    problems = draw_problems(2000, random.Random(0))
    assert len({problem.text for problem in problems}) == 2000
    for problem in problems:
        truth = true_values_from_text(problem.text)
        assert set(truth) == set("abcde"[: len(problem.operations)])
        assert all(1 <= value <= 9 for value in (problem.start, *truth.values()))
        assert all(1 <= abs(operation) <= 5 for operation in problem.operations)
        assert tuple(truth.values()) == problem.true_values
    lengths = [len(problem.operations) for problem in problems]
    assert set(lengths) == {1, 2, 3, 4, 5}
    assert {len(p.operations) for p in draw_problems(50, random.Random(0), shortest=5)} == {5}


def test_excluded_problems_do_not_occur():
    first = draw_problems(300, random.Random(0))
    again = draw_problems(300, random.Random(0), exclude=set(first[:150]))
    assert not set(again) & set(first[:150])
    assert set(again) & set(first[150:])


def test_values_are_held_at_the_border():
    assert [apply(9, 5), apply(1, -5), apply(14, 5), apply(-4, -1), apply(14, -5)] == [14, -4, 14, -4, 9]


@pytest.mark.parametrize("count", [0, -1, MAX_PROBLEMS + 1])
def test_impossible_counts_are_refused(count):
    with pytest.raises(PQMError, match=f"{count} problems"):
        draw_problems(count, random.Random(0))
