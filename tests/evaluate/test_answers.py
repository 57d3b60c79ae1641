r"""Answers as they stand in real solutions."""

import json
import time

import pytest

from pqm_fast.evaluate import majority_vote, pass_at_n
from pqm_fast.evaluate.answers import final_answer, group_answers, marked_answer, same_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"Which reduces to \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{3}, no: \boxed{\{1, \frac{a}{b}\}}. # Answer: 4", r"\{1, \frac{a}{b}\}"),
        (r"so \boxed{3} and then \boxed{4", "3"),  # cut off
        (r"\boxed{\boxed{5}}", "5"),
        (r"The answer is \(\boxed{30}\).", "30"),
        (r"\boxed{}, the answer is 4", "4"),
        ("That's correct.\n\n# Answer\n\n468", "468"),
        ("I get 3.\n\n# Answer\n\n8, 3, 1", "8, 3, 1"),
        ("16000 seeds. The answer is: 16000", "16000"),
        ("The answer is: 5\nWait.\nThe answer is: 7", "7"),
        ("The answer is $1.50. That is all 2 of us need.", "$1.50"),
        ("The answer is 5, because 2 + 3 = 5, not 6", "5"),
        ("**Final Answer:** 18", "18"),
        ("She sells 9 eggs\nA: 18", "18"),
        ("A: 5 is wrong\nso it is 6 eggs", "6"),  # only on the last line
        ("The answer is reasonable.\nA: 18\n", "18"),
        ("bar\n#### 1,200", "1,200"),
        ("#### Step 1\nso 5", "5"),
        ("a: 7 -2 =5", "5"),
        ("a: 7 -2 =5\nb: 5 -9 =-4", "-4"),
        ("4 - 2 = <<4-2=2>>2 per day", "2"),
        ("so it is 5 - 3", "3"),
        ("so it is (4)-3", "3"),
        ("he lost -$3,000.50 then", "-3,000.50"),
        ("it is −3", "−3"),
        (r"gives us $x=\dfrac{20}{3}$.", r"\dfrac{20}{3}"),
        ("a ratio of 3/4.", "3/4"),
        ("it is 1.5e-3", "1.5e-3"),
        ("it is 10^{-3}.", "10^{-3}"),
        ("it is 2x10^3", "2x10^3"),
        (r"so $2 \times 10^{3}$", r"2 \times 10^{3}"),
        ("4 - 10^2", "10^2"),
        ("90^{\\circ}", "90"),
        ("2 eggs", "2"),
        ("Subtracting x from both", None),
        ("", None),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


def test_marked_answer_does_not_fall_back_on_numbers():
    assert marked_answer("3 of 4\n#### 7") == "7"
    assert marked_answer("3 of 4") is None


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("18", "18.00"),
        ("2,125", "2125"),
        ("1,\\!000", "1000"),
        ("1{,}000", "1,000"),
        ("$18", "18"),
        ("\\$18.90", "18.9"),
        ("50%", "50"),
        ("50\\%", "50"),
        ("18.", "18"),
        ("−3", "-3"),
        ("+3", "3"),
        (".5", "0.5"),
        ("1/2", "0.5"),
        ("7/14", "\\frac{1}{2}"),
        ("\\dfrac12", "1/2"),
        ("1\\frac{1}{2}", "3/2"),
        ("-1 1/2", "-1.5"),
        ("-\\frac{1}{2}", "\\frac{-1}{2}"),
        ("0.333333", "1/3"),
        ("2/3", "0.6666667"),
        ("1e3", "1000"),
        ("18 dollars", "18"),
        ("$18 per day", "18"),
        ("5\\text{ cm}^2", "5"),
        ("\\frac{1}{2}\\text{ cm}", "0.5"),
        ("90^\\circ", "90"),
        ("x = 5", "5"),
        ("3 * 5 = 15", "15"),
        ("\\(5\\)", "5"),
        ("**18**", "18"),
        ("\\text{Evelyn}", "Evelyn"),
        ("yes", "Yes"),
        ("10+John's age", "10 + John's age"),
        ("\\left(1,2\\right)", "(1, 2)"),
        # by math-verify
        ("2\\sqrt{3}", "\\sqrt{12}"),
        ("pi/2", "\\frac{\\pi}{2}"),
        ("π", "\\pi"),
        ("5!", "120"),
        ("10^{3}", "1000"),
        ("x+1", "1+x"),
        ("\\{1,2\\}", "\\{2,1\\}"),
        ("1<x<2", "(1,2)"),  # math-verify sees these two in one direction only
        ("\\sqrt{4}=2", "2"),
        ("1 000 000", "1000000"),
        ("(B)", "B"),
        ("1\\,000", "1,000"),
        ("\\frac 1 2", "0.5"),
        ("101_2", "101_{2}"),
        ("5 feet", "5"),
        ("5 ft", "5\\text{ feet}"),
        ("1 dollar", "1 dollars"),
        ("x=5", "x = 5.0"),
        ("1.5E-3", "0.0015"),
        ("2x10^3", "2000"),
        ("2 \\times 10^{3}", "2000"),
        ("1\\,\\frac12", "1.5"),
        ("5%", "5 percent"),
        ("$5", "5 dollars"),
        ("\\$5", "$5$"),
        ("$5$", "5 cents"),  # a pair of them delimits mathematics
        ("25¢", "25 cents"),
        ("£5", "5 pounds"),
        ("$18 per day", "$18"),
        ("18 per day", "$18"),
        ("2B", "B2"),
        ("−1/2", "-0.5"),
        ("–3", "-3"),
    ],
)
def test_same(a, b):
    assert same_answer(a, b)
    assert same_answer(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("18", "19"),
        ("-5", "5"),
        ("1000000", "1000001"),
        ("0.33", "1/3"),
        ("0.00001", "0.00002"),
        ("9" * 200, "9" * 199 + "8"),
        ("1,2", "12"),
        ("10_2", "10"),
        ("101_{2}", "101"),
        ("101_2", "101_3"),
        ("5 10", "510"),
        ("3 4", "34"),
        ("3\\,4", "34"),
        ("3 4", "12"),
        ("B", "b"),
        ("(B)", "(b)"),
        ("\\text{B}", "b"),
        ("10 cents", "10 dollars"),
        ("$5", "5 cents"),
        ("\\$5", "5\\text{ cents}"),
        ("$5", "5 feet"),
        ("$5", "€5"),
        ("$50", "50%"),
        ("50\\%", "50 students"),
        ("$18 per day", "$18 per week"),
        ("2B", "2b"),
        ("3X+1", "3x+1"),
        ("\\frac{A}{2}", "\\frac{a}{2}"),
        ("2 hours", "2 minutes"),
        ("5 feet", "5 inches"),
        ("5\\text{ feet}", "5\\text{ inches}"),
        ("5\\text{ cm}^2", "5\\text{ cm}^3"),
        ("2\\sqrt{3}\\text{ cm}", "2\\sqrt{3}\\text{ km}"),
        ("x=5", "y=5"),
        ("1/0", "0"),
        ("1.8 billion", "1.8"),
        ("5\\text{ million}", "5"),
        ("2 and a half", "2"),
        ("3 or 4", "3"),
        ("5 sin x", "5"),
        ("10+John's age", "10"),
        ("no", "on"),
        ("listen", "silent"),
        ("x", "y"),
        ("(0,1]", "(0,1)"),
        ("x+y=5", "x-y=5"),
        ("", "5"),
        ("$", "%"),
        ("\\frac{", "1"),
        ("\x00", "\ud800"),
    ],
)
def test_different(a, b):
    assert not same_answer(a, b)
    assert not same_answer(b, a)


@pytest.mark.parametrize("odd", ["", "\x00", "\ud800", "\\frac{1}{", "(" * 250, "9" * 5000, "\\boxed{", "{}}{"])
def test_odd_text_equals_itself(odd):
    assert same_answer(odd, odd)
    final_answer(odd)


def test_odd_text_takes_linear_time():
    start = time.perf_counter()
    for text in ["answer" + " " * 100_000 + "x", "A:" + " " * 100_000 + "x\ny", "\\boxed{" * 20_000]:
        final_answer(text)
    for text in [
        "#" * 100_000,
        "answer is " * 20_000,
        "# answer" + " " * 100_000 + "x",
        "1,111" * 20_000,
        "# answer" + "\n" * 100_000,
    ]:
        final_answer(text)
    assert time.perf_counter() - start < 5


def test_long_steps_and_latex_that_never_ends():
    start = time.perf_counter()
    step = "We add 1 and get \\frac{1}{2}, so " * 400
    assert len(step) > 10_000
    assert final_answer("\n".join([step] * 20 + ["The answer is: −7"])) == "−7"
    assert final_answer("\\boxed{" + step) == "\\frac{1}{2}"
    open_ended = "The answer is: " + "\\frac{" * 2000 + "1"
    assert final_answer(open_ended).startswith("\\frac{")
    assert not same_answer(final_answer(open_ended), "1")
    assert same_answer(final_answer(open_ended), final_answer(open_ended))
    for ending in (
        "\\frac{1}{",
        "\\sqrt{" * 40,
        "\\begin{pmatrix} 1 & 2",
        "\\left( \\left(",
        "{" * 299,
        "$" * 299,
        "\\text{",
    ):
        assert not same_answer(ending, "5")
    assert time.perf_counter() - start < 30


def test_groups_are_numbered_by_first_appearance():
    answers = ["5", None, "1/2", "5.0", "0.5", "five", r"\frac{1}{2}", None, "5 dollars"]
    assert group_answers(answers) == [0, -1, 1, 0, 1, 2, 1, -1, 0]


def test_gsm8k_pool(shared_data):
    pool = json.loads(shared_data("gsm8k_best_of_4.json").read_text(encoding="utf-8"))
    right: dict[str, list[bool]] = {}
    groups, correct = [], []
    for question in pool:
        answers = [final_answer(response["text"]) for response in question["responses"]]
        correct.append([answer is not None and same_answer(answer, question["answer"]) for answer in answers])
        groups.append(group_answers(answers))
        for response, hit in zip(question["responses"], correct[-1], strict=True):
            right.setdefault(response["model_name"], []).append(hit)
    accuracy = {name: sum(hits) / len(hits) for name, hits in right.items()}
    assert accuracy == pytest.approx(
        {
            "6b_finetuning": 0.217,
            "6b_verification": 0.390,
            "175b_finetuning": 0.347,
            "175b_verification": 0.563,
        },
        abs=0.001,
    )
    assert majority_vote(groups, correct, ties="first").mean == pytest.approx(0.443, abs=0.001)
    assert pass_at_n(correct, 4).mean == pytest.approx(0.672, abs=0.001)
