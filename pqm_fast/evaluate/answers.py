r"""Final answers: find them in a solution, compare them, group them for a vote.

`same_answer` first normalises both texts (thousands separators, `$`, `%`, units, LaTeX spacing, ...) and
compares strings and numbers; only what is left goes to math-verify for a symbolic comparison.
"""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

TIME_LIMIT = 2  # seconds for each parse and each symbolic comparison
MAX_LENGTH = 300  # characters; anything longer is no answer, and is only equal to the same string

_INT = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_NUMBER = rf"(?:{_INT}(?:\.\d+)?|\.\d+)"
_FRACTION = r"\\[dtc]?frac\s*\{\s*-?\d+\s*\}\s*\{\s*\d+\s*\}"

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_MARKED = re.compile(
    r"^#+[ \t]*answer[ \t:]*\n\s*(?P<header>\S.*)"  # PRM800K: "# Answer\n\n29"
    r"|\banswer[\s*]*(?:is\b|:)[\s:*]*(?P<phrase>[^\s:*].*)"  # Math-Shepherd: "The answer is: 29"
    r"|^(?-i:A):[ \t]*(?P<letter>\S.*)\Z"  # "A: 29" on the last line
    r"|^####[ \t]*(?P<hashes>\S.*)\Z",  # GSM8K: "#### 29" on the last line
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"\.(?=\s|$)|,?\s(?:because|since|which|as|so)\s")
_LAST_NUMBER = re.compile(rf"(?P<sign>[-−]?)\\?\$?(?P<value>{_FRACTION}|{_NUMBER}(?:/\d+)?)", re.ASCII)


def final_answer(text: str) -> str | None:
    r"""The answer a solution ends with, as written, or None.

    In this order: the last complete `\boxed{...}`; else the last of `# Answer` with the answer below it,
    `... answer is X` or `Answer: X`, and, on the last line only, `A: X` or `#### X`; else the last number or
    fraction in the text (so `a: 7 -2 =5` gives 5).
    """
    marked = marked_answer(text)
    if marked is not None:
        return marked
    last = None
    for last in _LAST_NUMBER.finditer(text):  # noqa: B007
        pass
    if last is None:
        return None
    binary = re.search(r"[\d)\]}]\s*\Z", text[max(0, last.start() - 20) : last.start()])
    return last["value"] if binary else last["sign"] + last["value"]


def marked_answer(text: str) -> str | None:
    """As `final_answer`, without falling back on the last number: None if the text marks no answer."""
    boxed = _last_boxed(text)
    if boxed:
        return boxed
    answer = None
    for match in _MARKED.finditer(text.rstrip()):
        found = match[match.lastgroup or 0].strip()
        if match.lastgroup == "phrase":
            found = _SENTENCE_END.split(found, maxsplit=1)[0].strip()
        answer = found or answer
    return answer


def same_answer(a: str, b: str) -> bool:
    r"""Whether two answers are the same; symmetric, and never raises on odd text.

    Equal after normalisation, or two numbers that agree to six digits (integers: exactly), or symbolically
    equal by math-verify in either direction. Text that is not mathematics (it holds a word) is only equal to
    the same text. math-verify limits its time with a signal, which only the main thread may do: called from
    another thread, this comparison runs in a child process, with the same limit and verdict, but slower.
    """
    x, y = _normalise(a), _normalise(b)
    if _compact(x) == _compact(y):
        return x != "" or a == b
    p, q = _number(x), _number(y)
    if p is not None and q is not None:
        whole = p.denominator == q.denominator == 1
        return p == q or (not whole and abs(p - q) * 10**6 <= min(max(abs(p), abs(q)), Fraction(1)))
    if not (_is_mathematics(x) and _is_mathematics(y)):
        return False
    return _symbolically_equal(min(x, y), max(x, y))


def group_answers(answers: Sequence[str | None]) -> list[int]:
    """The equivalence class of each answer, numbered by first appearance; -1 for None (no answer)."""
    known: dict[str, int] = {}
    representatives: list[str] = []
    groups = []
    for answer in answers:
        if answer is None:
            groups.append(-1)
            continue
        if answer not in known:
            same = (i for i, other in enumerate(representatives) if same_answer(answer, other))
            known[answer] = next(same, len(representatives))
            if known[answer] == len(representatives):
                representatives.append(answer)
        groups.append(known[answer])
    return groups


def _last_boxed(text: str) -> str | None:
    """The content of the last balanced box, in one pass; an unclosed one (a cut-off solution) is ignored."""
    if "box" not in text:
        return None
    open_braces: list[int | None] = []  # where the content starts, for a box; None for any other brace
    start, content = -1, None
    for token in _BOXED.finditer(text):
        if token[0] == "{":
            open_braces.append(None)
        elif token[0].endswith("{") and len(token[0]) > 2:  # not the escaped brace
            open_braces.append(token.end())
        elif token[0] == "}" and open_braces:
            opened = open_braces.pop()
            if opened is not None and opened > start and text[opened : token.start()].strip():
                start, content = opened, text[opened : token.start()].strip()
    return content


_SCALE = "hundred|thousand|million|billion|trillion|dozen"
_UNICODE = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "\u00a0": " ",
        "~": " ",
        "π": r"\pi ",
        "∞": r"\infty ",
        "√": r"\sqrt ",
        "×": r"\times ",
    }
)
_REWRITE = [
    (re.compile(pattern), new)
    for pattern, new in [
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\(?:left|right)(?![a-zA-Z])", ""),
        (r"\^\s*\{?\s*\\(?:circ|degree)s?\s*\}?|°", ""),
        (r"\{,\}", ","),
        (r"(?<!\\)\\[!,;: ()\[\]]", ""),  # spaces and delimiters of mathematics, but not a line break \\
        (r"\\?[$%€£]|\*\*", ""),
        (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi"),
        (
            rf"(?<=[\d}}])\s*\\(?:text|mbox|mathrm)\s*\{{(?!\s*(?:{_SCALE})\b)[^{{}}]*\}}(?:\^\{{?\d\}}?)?\s*\Z",
            "",
        ),  # unit
        (r"\A\s*\\(?:text|mbox|mathrm|textbf|mathbf)\s*\{([^{}]*)\}\s*\Z", r"\1"),
        (r"\A\s*(?:[a-zA-Z]|[-\d\s+*/().]*\d[-\d\s+*/().]*)\s*=(?=[^=]*\Z)", ""),  # `x = 5`, `2 + 3 = 5`
        (r"[\s.,;:]+\Z", ""),
        (r"\s+", " "),
    ]
]
_VALUE = re.compile(
    rf"""(?P<sign>[-+]?)\s*
    (?:(?P<whole>{_INT})(?=\s*\\frac|\s+\d+\s*/)\s*)?
    (?:(?P<top>{_NUMBER})(?P<exponent>e[-+]?\d{{1,2}})?(?:\s*/\s*(?P<bottom>{_NUMBER}))?
      |\\frac\s*(?:\{{\s*(?P<up>-?{_INT})\s*\}}\s*\{{\s*(?P<down>{_INT})\s*\}}|(?P<u>\d)(?P<d>\d)))
    (?P<unit>(?:\s*[a-zA-Z]{{3,}}|\s+(?:cm|mm|km|kg|ft|lb|oz))(?:[\s/]+[a-zA-Z]+){{0,2}})?""",
    re.ASCII | re.VERBOSE,
)
_FUNCTIONS = {"sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "arcsin", "arccos", "arctan"}
_NOT_UNITS = _FUNCTIONS | {
    *_SCALE.split("|"),
    *(
        "half",
        "third",
        "quarter",
        "and",
        "or",
        "plus",
        "minus",
        "times",
        "over",
        "more",
        "less",
        "squared",
        "cubed",
    ),
}


@lru_cache(maxsize=65536)
def _normalise(answer: str) -> str:
    if len(answer) > MAX_LENGTH:
        return answer.strip()
    text = answer.translate(_UNICODE)
    for pattern, new in _REWRITE:
        text = pattern.sub(new, text)
    return text.strip()


def _compact(text: str) -> str:
    text = "".join(text.split())
    return text.casefold() if len(text) > 1 and text.isalpha() else text


@lru_cache(maxsize=65536)
def _number(text: str) -> Fraction | None:
    """The exact value of a normalised decimal, ratio or mixed number, with or without a unit; else None."""
    match = _VALUE.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if match is None or not _NOT_UNITS.isdisjoint(re.findall("[a-z]+", (match["unit"] or "").lower())):
        return None

    def part(*names: str, default: int) -> Fraction:
        return next((Fraction(match[k].replace(",", "")) for k in names if match[k]), Fraction(default))

    below = part("bottom", "down", "d", default=1)
    if not below:
        return None
    above = part("top", "up", "u", default=0) * Fraction("1" + (match["exponent"] or "e0"))
    value = part("whole", default=0) + above / below
    return -value if match["sign"] == "-" else value


def _is_mathematics(text: str) -> bool:
    """False for prose: sympy would read it as a product of letters, in which `no` equals `on`."""
    if not text or len(text) > MAX_LENGTH or (text.isalpha() and len(text) > 1):
        return False
    words = re.findall(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}", re.sub(r"\\[a-zA-Z]+(?:\{[a-z]*matrix\})?", " ", text))
    return text.isprintable() and all(word in _FUNCTIONS for word in words)


@lru_cache(maxsize=65536)
def _symbolically_equal(a: str, b: str) -> bool:
    if threading.current_thread() is threading.main_thread():
        return _verify(a, b)
    code = f"import json, sys; from {__name__} import _verify; print(_verify(*json.load(sys.stdin)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=json.dumps([a, b]), capture_output=True, text=True, check=True)
    return done.stdout.split()[-1] == "True"


def _verify(a: str, b: str) -> bool:
    from math_verify import verify

    x, y = _parse(a), _parse(b)
    # verify is not symmetric: it may simplify an assignment on one side only.
    return verify(x, y, timeout_seconds=TIME_LIMIT) or verify(y, x, timeout_seconds=TIME_LIMIT)


@lru_cache(maxsize=65536)
def _parse(text: str) -> list:
    from math_verify import LatexExtractionConfig, parse

    return parse(f"${text}$", [LatexExtractionConfig()], "no_fallback", parsing_timeout=TIME_LIMIT)
