"""Whether a solution ends right, whatever text it holds."""

import pytest

from pqm_fast.sample.answer_check import ends_right


@pytest.mark.parametrize(
    ("steps_so_far", "completion", "finished", "gold", "expected"),
    [
        ("", "7 - 2 = 5", True, "5", True),
        ("", "7 - 2 = 6", True, "5", False),
        ("", "7 − 2 = −5", True, "-5", True),  # the minus sign of fonts
        ("", r"so \boxed{\frac{1}{2}}", True, "0.5", True),
        ("", r"so \boxed{(x+1)^2}", True, "x^2 + 2x + 1", True),
        ("", "The answer is 12.", True, "some steps\n#### 12", True),  # the answer of GSM8K is a solution
        ("", r"\boxed{7}", True, r"Because of this, \boxed{7}.", True),  # and so is that of MATH
        ("", "I do not know.", True, "5", False),  # no final answer
        ("", "", True, "5", False),
        ("x = 5", "", True, "5", False),  # empty: the number before it is not an answer
        (r"\boxed{5}", "", True, "5", True),  # unless it is marked as one
        (r"\boxed{5}", " \n", True, "6", False),
        ("x = 5", r"\frac{" * 5000, True, "5", False),  # the completion has no number
        ("", "then 2 + 3 = 5", False, "5", False),  # cut off: the last number may be an intermediate result
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
def test_verdicts(steps_so_far, completion, finished, gold, expected):
    assert ends_right(steps_so_far, completion, finished, gold) is expected
