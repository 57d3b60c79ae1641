"""The policies of the arithmetic world, which continue a solution as they would have written it."""

import random

import pytest

from pqm_fast.arithmetic.policies import make_policies
from pqm_fast.arithmetic.problems import OPERATIONS, TRUE_VALUES, draw_problems
from pqm_fast.sample.arithmetic_policy import ArithmeticPolicy, parse_problem, parse_step
from pqm_fast.sample.policy import Request


def test_text_of_the_arithmetic_world_is_read_back():
    rng = random.Random(0)
    policies = make_policies()
    for problem in draw_problems(300, rng):
        assert parse_problem(problem.text) == problem
        for step in policies[rng.choice(list(policies))].solve(problem, rng):
            assert parse_step(step.text) == step
    for text in ("", "7", "7 a", "7 a 2", "7 a +2 c +1", "7 b +2", "77 a +2", "0 a +2", "7 a +9", "7 a +2 ", "x a +2"):
        assert parse_problem(text) is None, text
    for text in ("", "a: 7 -2", "f: 7 -2 =5", "a: 7 -2 =500", "a 7 -2 =5", "a: 7 -2 =5 ok"):
        assert parse_step(text) is None, text
    assert max(OPERATIONS) < 10 > max(TRUE_VALUES)  # one digit each, as the parser expects


@pytest.mark.parametrize("luck", [0.0, 1.0])
def test_continuing_is_like_starting(luck):
    """With the same luck, a prefix and its continuation are the whole solution: for every policy and every prefix."""

    class Luck(random.Random):
        def random(self):
            return luck

        def choice(self, items):
            return items[0]

    unlike = 0
    for policy in make_policies().values():
        for problem in draw_problems(60, random.Random(1), shortest=5):
            whole = policy.solve(problem, Luck())
            unlike += whole[-1].value != problem.answer or len(whole) < 5
            for t in range(1, len(whole) + 1):
                assert whole[:t] + policy.solve(problem, Luck(), whole[:t]) == whole
    assert (unlike > 100) == (luck == 0.0)


def test_a_finished_solution_is_not_continued():
    policy = ArithmeticPolicy("skip")
    policy.submit(Request("7 a -2 b +1", ("b: 7 +1 =8",), 1, "key"))
    [(_, completion)] = policy.collect()
    assert completion == ("", True, 1, False)


def test_one_step_at_a_time_has_the_tokens_of_the_whole():
    """Words, line breaks and the end: a solution of five steps has 5 * 4 words, 4 line breaks and an end."""
    problem = draw_problems(1, random.Random(5), shortest=5)[0]
    policy = ArithmeticPolicy("strong")

    def ask(steps, one_step):
        policy.submit(Request(problem.text, steps, 1, "key", one_step))
        [(_, completion)] = policy.collect()
        return completion

    assert ask((), False).tokens == 25
    steps: tuple[str, ...] = ()
    for t in range(1, 6):
        step = ask(steps, True)
        assert parse_step(step.text)
        assert step[1:] == (True, 5, t < 5)
        steps += (step.text,)
