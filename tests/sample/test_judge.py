"""Right or wrong, whatever the text holds, within bounded time."""

import os
import signal
import time
from pathlib import Path

import pytest

from pqm_fast.errors import PQMError
from pqm_fast.sample import judge as judge_module
from pqm_fast.sample.judge import Judge


@pytest.fixture(scope="module")
def judge():
    with Judge() as own:
        yield own


@pytest.mark.parametrize(
    ("begun", "completion", "finished", "gold", "expected"),
    [
        ("", "7 - 2 = 5", True, "5", True),
        ("", "7 - 2 = 6", True, "5", False),
        ("", "7 − 2 = −5", True, "-5", True),  # the sign that fonts have
        ("", r"so \boxed{\frac{1}{2}}", True, "0.5", True),
        ("", r"so \boxed{(x+1)^2}", True, "x^2 + 2x + 1", True),
        ("", "The answer is 12.", True, "some steps\n#### 12", True),  # GSM8K gives a solution as the answer
        ("", r"\boxed{7}", True, r"Because of this, \boxed{7}.", True),  # and so does MATH
        ("", "I do not know.", True, "5", False),  # no final answer
        ("", "", True, "5", False),
        ("x = 5", "", True, "5", False),  # empty: the number before it is no answer
        (r"\boxed{5}", "", True, "5", True),  # unless it is marked as one
        (r"\boxed{5}", " \n", True, "6", False),
        ("x = 5", r"\frac{" * 5000, True, "5", False),  # no number of its own
        ("", "then 2 + 3 = 5", False, "5", False),  # cut off: the last number may be any
        ("", r"\boxed{5} and so on, on and on, 6 7 8", False, "5", True),
        ("", r"\boxed{5", False, "5", False),
        ("", r"\frac{" * 5000, True, "5", False),
        ("", r"\boxed{" * 5000 + "5", True, "5", True),  # never closed: the last number is what is left
        ("", r"\left(" * 3000 + "5" + r"\right)" * 3000, True, "5", True),
        ("", "9" * 10_000, True, "9" * 10_000, True),
        ("", "9" * 10_000, True, "9" * 9_999 + "8", False),
        ("a" * 10_000, "b" * 10_000, True, "5", False),
        ("1", "\x00\ufffd 5 \u2028", True, "5", True),
    ],
)
def test_verdicts(judge, begun, completion, finished, gold, expected):
    assert judge.right(begun, completion, finished, gold) is expected
    assert judge.given_up == 0


HOSTILE = [
    r"9^{9^{9^{9}}}",
    r"\sum_{n=1}^{10^{10}} n^{n}",
    "(" * 140 + "1" + ")" * 140,
    r"x^{" * 60 + "2" + "}" * 60,
]


def test_a_hostile_answer_is_wrong_in_bounded_time():
    with Judge(limit=1.0) as judge:
        assert judge.right("", r"\boxed{x+x}", True, "2x")  # the child has started
        for k, answer in enumerate(HOSTILE):
            started = time.monotonic()
            assert not judge.right("", rf"\boxed{{{answer}}}", True, f"x^2 + {k}")
            assert time.monotonic() - started < 1.5
            assert judge.right("", rf"\boxed{{x+x+{k}}}", True, f"2x+{k}")  # a new child, if need be
        assert 2 <= judge.given_up <= len(HOSTILE)
        # the same answer again is not tried again
        given_up = judge.given_up
        assert not judge.right("", rf"\boxed{{{HOSTILE[0]}}}", True, "x^2 + 0")
        assert judge.given_up == given_up


def test_memory_is_bounded():
    with Judge() as judge:
        assert judge.right("", r"\boxed{x+x}", True, "2x")
        limits = Path(f"/proc/{judge.child.pid}/limits").read_text()
        line = next(line for line in limits.splitlines() if line.startswith("Max address space"))
        assert str(judge_module.MEMORY) in line


def test_a_child_that_something_else_ends_costs_no_verdict():
    with Judge() as judge:
        assert judge.right("", r"\boxed{x+x}", True, "2x")
        os.kill(judge.child.pid, signal.SIGKILL)
        judge.child.wait()
        assert judge.right("", r"\boxed{x+x+x}", True, "3x")
        assert judge.given_up == 0
        child = judge.child
    assert child.poll() is not None  # none is left behind


def test_a_child_that_does_not_start(monkeypatch):
    monkeypatch.setattr(judge_module.sys, "executable", "/bin/true")
    with Judge() as judge, pytest.raises(PQMError, match="the process for it does not start"):
        judge.right("", "x", True, "y") or judge.right("", "5", True, "6")
