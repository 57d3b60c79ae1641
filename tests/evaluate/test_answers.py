r"""Answers as they stand in real solutions."""

import json
import random
from itertools import combinations, permutations

import pytest

from pqm_fast.evaluate import majority_vote, pass_at_n
from pqm_fast.evaluate.answers import (
    final_answer,
    gold_answer,
    group_answers,
    judge,
    marked_answer,
    right_answer,
    same_answer,
)


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
        # phrases
        ("Final Answer: The final answer is $8$. I hope it is correct.", "8"),
        (r"The final answer is \(\frac{3}{4}\).", r"\frac{3}{4}"),
        ("Answer: The whole trip costs $45.", "45"),
        ("Answer: It takes 5 hours.", "5 hours"),
        ("The answer is equal to $7$.", "7"),
        ("So the answer is that he has 5 apples.", "5 apples"),
        ("The answer is therefore 5.", "5"),
        ("The answer would be 7", "7"),
        ("Hence the answer = 7", "7"),
        ("the answer is 21, not 12.", "21"),
        ("the answer is 12 instead of 13", "12"),
        ("The answer is 3.5 meters, rounded to one decimal.", "3.5 meters"),
        (r"the answer is $\frac{1}{2}$, which is 0.5", r"\frac{1}{2}"),
        ("The answer is the number 7 (seven).", "7"),
        ("The answers are 3 and 5.", "3 and 5"),
        ("The answer is 4. I hope the answer is correct.", "4"),
        ("The answer is x = 5.", "x = 5"),
        ("The answer is red, green and blue.", "red, green and blue"),
        ("The correct answer is B) 7 pears", "B"),
        ("Thus, the final answer is: **(B)**", "B"),
        ("The correct option is B: 5", "B"),
        ("The answer is option B", "B"),
        ("<answer>\n42\n</answer>", "42"),
        ("<think>is it <answer>1</answer>?</think><answer> y-2 </answer>", "y-2"),
        # mixed numbers
        ("It lasts 3 1/4 hours.", "3 1/4"),
        (r"It weighs $4\frac{2}{3}$ kg.", r"4\frac{2}{3}"),
        # several boxes
        (r"\boxed{2}, \boxed{4} or \boxed{8}", "2, 4, 8"),
        (r"The roots are $x=\boxed{2}$ and $x=\boxed{-3}$.", "2, -3"),
        (r"First \boxed{3}. Then \boxed{5}.", "5"),
        (r"$\boxed{4}$." "\n\n" r"$\boxed{5}$", "5"),
        (r"\boxed{4} \Rightarrow \boxed{5}", "5"),
        (r"\boxed{4} is wrong, and from this we get \boxed{5}", "5"),
        (r"we have \boxed{3} apples and \boxed{5} pears", "3, 5"),
        ("The answer is:\n$$\n5\n$$\nas asked.", "5"),
        ("The answer is (A) and (C).", "(A) and (C)"),
        ("Answer: 1; 2; 3", "1; 2; 3"),
        ("The answer is 5, but let me check. Actually the answer is 6.", "6"),
        ("The answer is 3/4 of the cake.", "3/4"),
        ("<answer>The answer is 5</answer>", "5"),
        (r"\boxed{3}, so the answer is \boxed{3}", "3"),
        ("", None),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


def test_gold_answer():
    assert gold_answer("so 2\n#### 7") == "7"
    assert gold_answer("A: 12 apples") == "A: 12 apples"


def test_marked_answer_does_not_fall_back_on_numbers():
    assert marked_answer("3 of 4\n#### 7") == "7"
    assert marked_answer("3 of 4") is None


# one list a kind; all of a list are equal to its first
SAME = {
    "numbers": ["18", "18.00", "18.", "+18", "36/2", r"\frac{36}{2}", "6 * 3 = 18", "**18**", r"\(18\)", r"\sqrt{324}"],
    "thousands": ["2125", "2,125", r"2,\!125", "2{,}125", r"2\,125", "2 125", r"2.125 \times 10^3", "2.125e3"],
    "fractions": [
        "1/2",
        "0.5",
        ".5",
        "7/14",
        r"\dfrac12",
        r"\frac 1 2",
        "½",
        "50%",
        r"50\%",
        "50 percent",
        "1／2",
        "５/10",
    ],
    "signs": ["-3", "−3", "–3", r"-\frac{6}{2}", "﹣3", "\u200b-3"],
    "mixed numbers": ["3/2", r"1\frac{1}{2}", "1 1/2", r"1\,\frac12", "1½", "1.5", "15/10"],
    "negative mixed numbers": ["-1.5", "-1 1/2", r"-1\frac12"],
    "repeating decimals": ["1/3", r"0.\overline{3}", "0.333333", "0.333...", "0.(3)", r"0.\dot{3}", "0.3333333333"],
    "longer periods": [r"\frac{7}{22}", r"0.3\overline{18}", "0.3(18)", r"0.3181818\ldots", "0.318182"],
    "powers of ten": [
        "0.000015",
        "1.5e-5",
        "1.5E-5",
        r"1.5 \times 10^{-5}",
        "1.5×10⁻⁵",
        "1.5*10^-5",
        "1.5 x 10^-5",
        r"15\cdot10^{-6}",
    ],
    "powers": ["1024", "2^{10}", "2**10", "2^10", "2¹⁰", "4^5"],
    "roots": [r"\sqrt{12}", r"2\sqrt{3}", "2√3", "2*sqrt(3)", r"\frac{6}{\sqrt3}", "3.464102", "12^{1/2}", "12^0.5"],
    "cube roots": ["2", "∛8", "³√8", r"\sqrt[3]{8}", "8^{1/3}", r"-\sqrt[3]{-8}"],
    "pi": [
        r"\frac{\pi}{4}",
        "π/4",
        "pi/4",
        "45°",
        r"45^\circ",
        "45 degrees",
        r"45^{\circ}",
        r"\arctan 1",
        r"\tan^{-1}(1)",
        r"\frac{\pi}{4} \text{ rad}",
    ],
    "infinity": [r"\infty", "infinity", "∞", "oo"],
    "logarithms": [
        "4",
        r"\log_3 81",
        r"\log_381",
        r"\log_{3}{81}",
        r"\ln e^4",
        "lg 10000",
        r"\log 10^4",
        r"\frac{\ln 81}{\ln 3}",
    ],
    "i": ["i", "1i", r"\mathrm{i}", r"\sqrt{-1}", r"e^{i\pi/2}", "-i^3"],
    "complex numbers": ["3+4i", "4i+3", "3 + 4 i", "(2+i)^2"],
    "Euler": ["-1", r"e^{i\pi}", "i^2"],
    "functions": ["1/2", r"\cos 60^\circ", r"\sin\frac{\pi}{6}", r"\frac{\sin 30^\circ}{1}"],
    "factorials": ["120", "5!", r"\binom{10}{3}", "5*4*3*2"],
    "letters": ["3xy", "3yx", "xy3", r"3x \cdot y", r"x\times 3y", "3 x y", "3*x*y"],
    "two letters": ["xy", "yx", r"x \cdot y", "x*y"],
    "polynomials": ["x^2+2x+1", "(x+1)^2", "1+2x+x**2", "x²+2x+1", r"\frac{(x+1)^3}{x+1}", "x(x+2)+1"],
    "capitals": ["2B", "B2", "2 B", r"2\text{B}"],
    "Greek": [r"2\theta", "2θ", r"\theta\cdot 2"],
    "identities": [r"\sin(2x)", r"2\sin(x)\cos x", r"2\cos x \sin x"],
    "lines": ["y = 2x + 1", "2x - y = -1", "y-2x=1", "y-2x-1=0", "4x - 2y + 2 = 0", "1 + 2x = y"],
    "circles": ["x^2+y^2=25", "25 = y^2 + x^2", "2x²+2y²=50"],
    "one unknown": ["x = 5", "x=5.0", "2x = 10", "5 = x", r"x=\sqrt{25}", "x = 2 + 3 = 5"],
    "lists": ["3, 5", "5, 3", "3 and 5", "3 or 5", "3,5", r"3 \text{ and } 5", "$3$ and $5$", "3; 5"],
    "solutions": ["x = 1 or x = -1", "x=-1, x=1", "x = 1, -1", r"x=\pm 1", r"x=1\text{ or }-1"],
    "two unknowns": ["x = 2, y = 3", "y=3 and x=2"],
    "both signs": [r"3 \pm \sqrt{2}", r"3+\sqrt{2}, 3-\sqrt2", "3±√2"],
    "tuples": ["(1, 2)", r"\left(1,2\right)", "(1,2)", "( 1.0 , 2 )", "1<x<2", "2 > x > 1"],
    "tuples of three": ["(1,2,3)", "(1, 2, 3)"],
    "points": ["(1,2), (3,4)", "(3,4) and (1,2)"],
    "sets": [r"\{1,2\}", r"\left\{2,1\right\}", r"\{1, 2, 2\}", r"\lbrace 1,2 \rbrace", "{1,2}"],
    "empty set": [r"\emptyset", r"\varnothing", "∅", r"\{\}"],
    "closed intervals": [
        "[0,1]",
        r"0 \le x \le 1",
        r"x \in [0, 1]",
        "0<=x<=1",
        "0≤x≤1",
        r"1 \geq x \geq 0",
        r"0\le 2x\le 2",
    ],
    "half-open intervals": ["[2,5)", r"2 \leq x < 5", r"\left[2,5\right)"],
    "rays": [
        "x > 2",
        r"(2, \infty)",
        "2 < x",
        "2x > 4",
        "-x < -2",
        r"\{x \mid x > 2\}",
        r"x \in (2, \infty)",
        "3x - 6 > 0",
    ],
    "unions": [r"(-\infty,-1)\cup(1,\infty)", r"x<-1 \text{ or } x>1", r"x>1 \lor x<-1", "(1,∞)∪(-∞,-1)"],
    "all numbers": [r"\mathbb{R}", r"(-\infty, \infty)"],
    "matrices": [r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix} 1 & 2 \\ 3 & \sqrt{16} \end{bmatrix}"],
    "remainders": [r"19 \pmod 7", r"5 \pmod{7}", "5 mod 7", "12 (mod 7)", r"x \equiv 5 \pmod 7"],
    "bases": ["1011_2", "1011_{2}", "1011 (base 2)", "(1011)_2", "1011 in base 2", r"1011_{\text{two}}", "01011_2"],
    "options": [
        "C",
        "(C)",
        "C)",
        "C.",
        r"\text{(C)}",
        r"\textbf{(C)}\ 12",
        r"\boxed{C}",
        "C) 12 apples",
        r"\mathrm{C}",
        "option C",
    ],
    "words": ["Evelyn", r"\text{Evelyn}", "evelyn", "EVELYN."],
    "sentences": ["10+John's age", "10 + John's age"],
    "lengths": ["5 feet 6 inches", "66 inches", "5 ft 6 in", "5.5 feet", "5'6\"", r"66\text{ in}"],
    "metres": ["1 km", "1000 m", "1000 meters", r"1\text{ km}", "100,000 cm"],
    "times": ["2 hours 30 minutes", "150 minutes", "2.5 hours", "2 hours and 30 minutes", "2 1/2 hours"],
    "money": ["$5.25", "5 dollars and 25 cents", "525 cents", r"\$5.25", "5.25 dollars"],
    "cents": ["25¢", "25 cents", "$0.25"],
    "pounds": ["£5", "5 pounds"],
    "areas": [r"12\text{ cm}^2", "12 square centimeters", "12 cm^2", "12 sq cm"],
    "rates": ["$18 per day", "18 dollars per day", "18 dollars/day"],
    "speeds": ["60 mph", "60 miles per hour", "60 miles/hour"],
    "large numbers": ["1.5 million", "1,500,000", "1500 thousand"],
    "dozens": ["36", "3 dozen"],
    "nouns": ["5 apples", "5 apple", r"5\text{ apples}"],
    "commas in brackets": ["(0,100)", "(0, 100)", "0 < x < 100"],
    "thousands in brackets": ["(1,000, 2)", "(1000,2)"],
    "squares of functions": [r"\sin^2 x", "sin(x)**2", r"\sin(x)^2", "(sinx)^2"],
    "code": ["3+2i", "3+2j", "2j + 3"],
    "roots in code": [r"\sqrt2", "math.sqrt(2)", "sqrt 2", "√2"],
    "all but one": [r"x \ne 2", r"(-\infty,2)\cup(2,\infty)", "x != 2"],
    "signs of Unicode": ["2", "⌊2.5⌋", "∣−2∣", "2000‰", "⁴⁄₂"],
    "elements by math-verify": [r"\{3, \sum_{k=1}^{5}1\}", r"\{5,3\}"],
    "by math-verify": ["6", r"\sum_{k=1}^{3} k", r"12 \int_0^1 x\,dx"],
    "sets by math-verify": [r"\mathbb{R} \setminus \{1\}", r"(-\infty,1)\cup(1,\infty)"],
}

# no two of a list are equal
DIFFERENT = {
    "numbers": ["18", "19", "-18", "18.5", "1800", "18_2", "1 8"],
    "digits": ["0.33", "1/3", "0.3333", "0.333", "3.3"],
    "whole numbers": [
        "1000000",
        "1000001",
        "9" * 200,
        "9" * 199 + "8",
        "10^{100}",
        "10^{100}+1",
        "2^{1000}",
        "2^{1000}+1",
    ],
    "small numbers": [
        r"6.63\times10^{-34}",
        r"6.62\times 10^{-34}",
        "0",
        "10^{-20}",
        "1e-21",
        r"\frac{1}{3^{50}}",
        r"\frac{1}{3^{51}}",
    ],
    "exponentials": [
        "e^{-60}",
        "e^{-61}",
        r"\sin(10^{-26})",
        r"\left(\frac{2}{3}\right)^{150}",
        r"\left(\frac{2}{3}\right)^{151}",
    ],
    "near a simple number": ["1", "1+10^{-17}", r"\frac{10^{20}+1}{10^{20}}", "1-10^{-30}", "1+e^{-50}"],
    "near a fraction": [r"\frac16", r"\frac{2^{90}+1}{3\cdot2^{91}}", r"\frac{1}{3\cdot2^{91}}"],
    "near a root": [r"\sqrt{2}", r"\sqrt{2}+10^{-20}", "1.4142"],
    "kinds": ["1, 2", "(1,2)", "(2,1)", r"\{1,2\}", "[1,2]", "(1,2]", "[1,2)", "12", "1.2", "1:2"],
    "bounds": ["x<2", r"x\le 2", "x>2", r"x\ne 2", "x=2", "(0,2)"],
    "lists": ["2, 3", "2, 3, 3", "2", "3", "2 and a half", "23"],
    "variables": ["x=5", "y=5", "x", "y", "x=6"],
    "letters": ["B", "b", "2B", "2b", "AB", "C", "x_1", "x2", "x"],
    "words": ["no", "on", "yes", "listen", "silent"],
    "lines": ["y=2x+1", "y=2x-1", "x=2y+1", "2x+1"],
    "expressions": ["x^2", "x^3", "|x|", "x", r"\sqrt{x^2}+1", "x+10^{-20}", "5 sin x"],
    "complex numbers": ["3+4i", "3-4i", "4+3i", "7", "7i"],
    "bases": ["10_2", "10", "10_3", "2", "101_2"],
    "remainders": [r"5 \pmod 7", r"5 \pmod 8", "5", r"6 \pmod 7"],
    "units": ["5", "5 feet", "5 inches", "5 hours", "$5", "5 cents", "€5", "5%", "5 students", "5^\\circ"],
    "rates": ["$18 per day", "$18 per week", "$18", "18"],
    "scales": ["1.8 billion", "1.8", "1.8 million"],
    "temperatures": [r"30^\circ\text{C}", r"30^\circ\text{F}", r"30^\circ"],
    "brackets": ["(0,100)", "100", "[0,100]", "(0,10)", r"\{0,100\}"],
    "large unknowns": ["x=2^{160}", "x=2^{161}", "y=2^{160}", "x=10^{50}", r"x=\infty", r"x=-\infty", r"y=\infty"],
    "small unknowns": ["x=2^{-160}", "x=2^{-161}", "x=0", r"x+\frac{1}{2^{200}}", r"x+\frac{1}{2^{201}}", "x+0"],
    "absolute values": ["|x-5|", "5-x", "x-5", "|x+5|", "x+5"],
    "products of signs": ["|xy|", "xy", r"\sqrt{a^2b^2}", "ab", "|x|+|y|", "|x+y|"],
    "case of units": ["5 MPa", "5 mPa", "5 pascals"],
    "options": ["(A) and (B)", "(A)", "(B)", "B. C"],
    "two letters": ["TF", "FT", "HT", "TH"],
    "determinants": [r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"],
    "functions": ["sin(x)^2", "sin(x^2)", "3!", "3!!"],
    "odd text": ["", "5", "$", "%", r"\frac{", "1", "\x00", "\ud800", "1/0", "0"],
    "too large": ["9^{9^{9^9}}", "9^{9^{9^8}}", "100000000!", "5"],
}


@pytest.mark.parametrize("kind", SAME)
def test_same(kind):
    first, *others = SAME[kind]
    assert [other for other in others if not (same_answer(first, other) and same_answer(other, first))] == []


@pytest.mark.parametrize("kind", DIFFERENT)
def test_different(kind):
    pairs = combinations(DIFFERENT[kind], 2)
    assert [(a, b) for a, b in pairs if same_answer(a, b) or same_answer(b, a)] == []


def test_an_equivalence_over_all_cases():
    """Reflexive, symmetric and transitive: the answers that are the same as one are the same among themselves."""
    texts = sorted({text for own in (*SAME.values(), *DIFFERENT.values()) for text in own[:3]})
    equal = {a: {b for b in texts if same_answer(a, b)} for a in texts}
    assert all(a in equal[a] for a in texts)
    assert all(equal[b] == equal[a] for a in texts for b in equal[a])


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("5 feet", "5"),
        ("5\\text{ cm}^2", "5"),
        ("\\frac{1}{2}\\text{ cm}", "0.5"),
        ("$18", "18"),
        ("18 dollars", "18"),
        ("$18 per day", "18"),
        ("$18 per day", "$18"),
        ("18 per day", "$18"),
        ("50%", "50"),
        ("50%", "0.5"),
        ("90^\\circ", "90"),
        ("90^\\circ", "\\frac{\\pi}{2}"),
        ("x = 5", "5"),
        ("y = 2x + 1", "2x+1"),
        ("f(x) = x^2", "x^2"),
        ("Area = 5", "5"),
        ("20°C", "20"),
        ("x = 1 or x = 2", "1, 2"),
        ("$5$", "5 cents"),  # a pair of them delimits mathematics
    ],
)
def test_right_with_what_one_of_the_two_leaves_out(answer, gold):
    assert right_answer(answer, gold)
    assert right_answer(gold, answer)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("5 feet", "5 inches"),
        ("5 angles", r"5^\circ"),  # words that are no units, but called as what units measure
        ("5 volumes", "5 liters"),
        ("5 lengths", "5 meters"),
        (r"x - \infty = 5", "x = 0"),
        ("$5", "5 cents"),
        ("$50", "50%"),
        ("50%", "50 students"),
        ("x=5", "y=5"),
        ("$18 per day", "$18 per week"),
        ("5 million", "5"),
        ("2\\sqrt{3}\\text{ cm}", "2\\sqrt{3}\\text{ km}"),
        ("0.5", "50"),
        ("2sinx", "2"),
        ("5abc", "5"),
        ("2 thirds", "2"),
        ("5 factorial", "5"),
        ("(3,5)", "3, 5"),
        ("101_2", "101"),
    ],
)
def test_wrong(answer, gold):
    assert not right_answer(answer, gold)
    assert not right_answer(gold, answer)


def test_shared_cases(shared_cases):
    def pairs(name):
        return [json.loads(line) for line in (shared_cases / name).read_text(encoding="utf-8").splitlines()]

    assert [pair for pair in pairs("answers_equal.jsonl") if not same_answer(*pair)] == []
    assert [pair for pair in pairs("answers_different.jsonl") if same_answer(*pair)] == []
    assert [text for text, value in pairs("answer_phrases.jsonl") if final_answer(text) != value] == []


@pytest.mark.parametrize("odd", ["", "\x00", "\ud800", "\\frac{1}{", "(" * 250, "9" * 5000, "\\boxed{", "{}}{"])
def test_odd_text_equals_itself(odd):
    assert same_answer(odd, odd)
    final_answer(odd)


def test_odd_text_takes_linear_time():
    """Texts so long that a search that looks back, for n^2 steps, would take many minutes for each."""
    n = 100_000
    for text in [
        "answer" + " " * n + "x",
        "A:" + " " * n + "x\ny",
        "\\boxed{" * (n // 6),
        "#" * n,
        "answer is " * (n // 6),
        "# answer" + " " * n + "x",
        "1,111" * (n // 6),
        "# answer" + "\n" * n,
        "the answer is 5 (" + "a" * n + "(",
        r"\boxed{1}" + "a" * n + r"\boxed{2}",
        r"\boxed{1} " * (n // 6),
    ]:
        final_answer(text)


PIECES = (
    *(
        r"\frac",
        r"\sqrt",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        r"\{",
        r"\}",
        "|",
        "^",
        "_",
        "=",
        "<",
        r"\le",
        r"\cup",
        ",",
        " and ",
    ),
    *(
        "1",
        "0.5",
        "2/3",
        "12",
        "x",
        "y",
        "i",
        "e",
        r"\pi",
        "+",
        "-",
        "*",
        "/",
        "!",
        "%",
        "$",
        r"\pm",
        r"\log",
        "sin",
        " ",
    ),
    *(
        " feet",
        r"\text{ cm}",
        "^2",
        r"^\circ",
        " or ",
        r"\pmod 7",
        r"\infty",
        "½",
        "²",
        "\ud800",
        "0.(3)",
        "B)",
        "x = ",
        "'",
    ),
)


def test_random_text_is_itself_and_raises_nothing():
    draw = random.Random(1)
    for _ in range(500):
        text = "".join(draw.choices(PIECES, k=draw.randint(1, 12)))
        assert same_answer(text, text), text
        assert group_answers([text, text]) == [0, 0]
        marked_answer(f"The answer is {text}. \\boxed{{{text}}}")


def test_long_steps_and_latex_that_never_ends(recwarn):
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
    assert not recwarn.list  # no comparison was stopped by its limit


def test_groups_are_numbered_by_first_appearance():
    answers = ["5", None, "1/2", "5.0", "0.5", "five", r"\frac{1}{2}", None, "5 dollars"]
    assert group_answers(answers) == [0, -1, 1, 0, 1, 2, 1, -1, 0]


@pytest.mark.parametrize(
    ("answers", "classes"),
    [
        (["5", "5 feet", "5.0", "x = 5"], [{0, 1, 2, 3}]),
        (["5", "5 feet", "5 inches"], [{0}, {1}, {2}]),  # whose unit is it that 5 leaves out?
        (["50", "50%"], [{0, 1}]),
        (["50", "50%", "0.5"], [{0}, {1, 2}]),  # 0.5 is not 50
        (["50", "0.5"], [{0}, {1}]),
        (["(3,4)", "3, 4", r"\{3,4\}", "4, 3", "(4,3)"], [{0}, {1, 3}, {2}, {4}]),
        (["0.3333330", "0.3333333", "0.3333338", "1/3"], [{0, 1, 3}, {2}]),
    ],
)
def test_groups_do_not_depend_on_the_order(answers, classes):
    for order in permutations(range(len(answers))):
        found = group_answers([answers[i] for i in order])
        groups = [{i for i, g in zip(order, found, strict=True) if g == k} for k in range(max(found) + 1)]
        assert sorted(groups, key=min) == sorted(classes, key=min)


def test_a_vote_over_symbolic_answers_needs_no_child():
    """Time grows with the number of answers, not of pairs: 203 s for 128 by math-verify, in pairs."""
    draw = random.Random(0)
    answers = [f"{draw.randint(1, 99)}x^3 - {draw.randint(1, 99)}x^2 + {k}" for k in range(128)]
    judge._stop()
    assert group_answers(answers) == list(range(128))
    assert judge._child is None


def test_gsm8k_pool(shared_data):
    pool = json.loads(shared_data("gsm8k_best_of_4.json").read_text(encoding="utf-8"))
    right: dict[str, list[bool]] = {}
    groups, correct = [], []
    for question in pool:
        answers = [final_answer(response["text"]) for response in question["responses"]]
        correct.append([answer is not None and right_answer(answer, question["answer"]) for answer in answers])
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
