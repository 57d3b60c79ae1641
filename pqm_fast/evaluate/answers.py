r"""Final answers: find them in a solution, compare them, group them for a vote.

`same_answer` first normalises both texts (thousands separators, `$`, `%`, units, LaTeX spacing, ...) and
compares strings and numbers; only what is left goes to math-verify (`judge.py`) for a symbolic comparison.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from pqm_fast.evaluate.judge import symbolically_equal

MAX_LENGTH = 300  # characters; anything longer is no answer, and is only equal to the same string

_INT = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_NUMBER = rf"(?:{_INT}(?:\.\d+)?|\.\d+)"
_POWER = r"\^\s?(?:\{\s?[-−+]?[\d./]+\s?\}|[-−+]?\d+)"
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
_LAST_NUMBER = re.compile(
    rf"""(?P<sign>[-−]?)\\?\$?(?P<value>{_FRACTION}
      |(?:{_NUMBER}[ ]?(?:[x×*]|\\times|\\cdot)[ ]?(?=10\^))?  # 2 x 10^3
       {_NUMBER}(?:e[-+]?\d+|{_POWER})?(?:/\d+)?)""",
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)


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
    equal by math-verify in either direction. The variable of `x = 5` and the unit of `5 feet`, `$5` or `5%` may be
    absent on one side, but not differ. Text that is not mathematics (it holds a word, a number base as in `10_2`, or
    numbers side by side) is only equal to the same text, and a letter is never the same letter in another case.
    A symbolic comparison that takes longer than `judge.LIMIT` seconds counts as different, with a warning.
    """
    x, y = _read(a), _read(b)
    if (x.name and y.name and x.name != y.name) or _units_differ(x, y):
        return False
    if _compact(x.text) == _compact(y.text):
        return x.text != "" or a == b
    p, q = x.value, y.value
    if p is not None and q is not None:
        whole = p.denominator == q.denominator == 1
        return p == q or (not whole and abs(p - q) * 10**6 <= min(max(abs(p), abs(q)), Fraction(1)))
    if not (_is_mathematics(x.text) and _is_mathematics(y.text)):
        return False
    if {letter.swapcase() for letter in _letters(x.text) - _letters(y.text)} & (_letters(y.text) - _letters(x.text)):
        return False  # 2B is not 2b; math-verify ignores case
    return symbolically_equal(min(x.text, y.text), max(x.text, y.text))


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
        (r"(?<!\\)\\[!()\[\]]", ""),  # delimiters of mathematics
        (r"(?<!\\)\\[,;: ]", " "),  # spaces of mathematics, but not a line break \\
        (r"\\?[$%€£¢]|\*\*", ""),
        (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi"),
        (r"\A\s*\\(?:text|mbox|mathrm|textbf|mathbf)\s*\{([^{}]*)\}\s*\Z", r"\1"),
        (r"\A\s*[-\d\s+*/().]*\d[-\d\s+*/().]*\s*=(?=[^=]*\Z)", ""),  # `2 + 3 = 5`
        (r"[\s.,;:]+\Z", ""),
        (r"\s+", " "),
        (r"\\frac ?(\d) (?=\d)", r"\\frac\1"),
        (r"(?<=\d)_\{(\w+)\}", r"_\1"),
        (r"(?<=\d) ?[xX*] ?(?=10\^)", r"\\times "),
    ]
]
_THOUSANDS = re.compile(r"(?<![\d.,])(?<!\d )\d{1,3}(?: \d{3})+(?!,?\d| ?\d|\s*/)")  # 1 000 000
_NAME = re.compile(r"\s*([a-zA-Z])\s*=(?=[^=]*\Z)")  # `x = 5`
_TEXT_UNIT = re.compile(  # `5\text{ cm}^2`
    rf"(?<=[\d}}])\s*\\(?:text|mbox|mathrm)\s*\{{(?!\s*(?:{_SCALE})\b)([^{{}}]*\}}(?:\^\{{?\d\}}?)?)\s*\Z"
)
_UNITS = {"feet": "foot", "ft": "foot", "inches": "inch", "lb": "pound", "lbs": "pound", "oz": "ounce", "per": "/"}
_SYMBOLS = {"$": "dollar", "€": "euro", "£": "pound", "¢": "cent", "%": "percent"}
_UNITS |= {"mm": "millimeter", "cm": "centimeter", "km": "kilometer", "kg": "kilogram"}
_VALUE = re.compile(
    rf"""(?P<sign>[-+]?)\s*
    (?:(?P<whole>{_INT})(?=\s*\\frac|\s+\d+\s*/)\s*)?
    (?:(?P<top>{_NUMBER})(?P<exponent>[eE][-+]?\d{{1,2}})?(?:\s*/\s*(?P<bottom>{_NUMBER}))?
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


class _Answer(NamedTuple):
    name: str  # the variable of `x = 5`, or empty
    text: str  # normalised, without the name and a unit in \\text
    value: Fraction | None  # of a decimal, ratio or mixed number, with or without a unit
    symbol: str  # the word for a `$` or `%`, also where it is written out, or empty
    unit: str  # what is left of the unit, in one spelling, or empty


@lru_cache(maxsize=65536)
def _read(answer: str) -> _Answer:
    if len(answer) > MAX_LENGTH:
        return _Answer("", answer.strip(), None, "", "")
    text = answer.translate(_UNICODE)
    for pattern, new in _REWRITE:
        text = pattern.sub(new, text)
    text = _THOUSANDS.sub(lambda group: group[0].replace(" ", ""), text)
    name, unit = _NAME.match(text), _TEXT_UNIT.search(text)
    text = text[name.end() if name else 0 : unit.start() if unit else None].strip()
    value, word = _number(text)
    symbol, word = _symbol(answer), _unit(unit[1] if unit else word)
    first, _, rest = word.partition(" ")
    if first in _SYMBOLS.values():
        symbol, word = symbol or first, rest
    return _Answer(name[1] if name else "", text, value, symbol, word)


def _units_differ(x: _Answer, y: _Answer) -> bool:
    """`$5` differs from `5 cents` and from `5 feet`, but not from `5` or `$5 per day`, nor `5 per day` from `$5`."""
    if (x.symbol and y.symbol and x.symbol != y.symbol) or (x.unit and y.unit and x.unit != y.unit):
        return True
    pairs = ((x, y), (y, x))
    return any(p.symbol and not q.symbol and q.unit and not q.unit.startswith("/") and not p.unit for p, q in pairs)


def _symbol(text: str) -> str:
    """The word for the one symbol in a text; two plain `$` delimit mathematics."""
    found = {s[-1] for s in re.findall(r"\\?[$€£¢%]", text) if s != "$" or text.count("$") == 1}
    return _SYMBOLS[found.pop()] if len(found) == 1 else ""


def _unit(text: str) -> str:
    words = re.findall(r"[a-z]+|\d|/", text.casefold())
    return " ".join(_UNITS.get(word, word.removesuffix("s") if len(word) > 3 else word) for word in words)


def _compact(text: str) -> str:
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)  # 3 4 is not 34
    return text.casefold() if len(text) > 1 and text.isalpha() else text


def _number(text: str) -> tuple[Fraction | None, str]:
    """The exact value of a normalised decimal, ratio or mixed number (else None), and its unit."""
    match = _VALUE.fullmatch(text)
    if match is None or not _NOT_UNITS.isdisjoint(re.findall("[a-z]+", (match["unit"] or "").lower())):
        return None, ""

    def part(*names: str, default: int) -> Fraction:
        return next((Fraction(match[k].replace(",", "")) for k in names if match[k]), Fraction(default))

    below = part("bottom", "down", "d", default=1)
    if not below:
        return None, ""
    above = part("top", "up", "u", default=0) * Fraction("1" + (match["exponent"] or "e0"))
    value = part("whole", default=0) + above / below
    return -value if match["sign"] == "-" else value, match["unit"] or ""


def _letters(text: str) -> set[str]:
    """The letters of a normalised text outside LaTeX commands."""
    return set(re.findall("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", " ", text)))


def _is_mathematics(text: str) -> bool:
    """False for prose: sympy would read it as a product of letters, in which `no` equals `on`."""
    if not text or len(text) > MAX_LENGTH or (text.isalpha() and len(text) > 1):
        return False
    if re.search(r"\d(?: \d| ?_)", text):  # numbers side by side, or in a base
        return False
    words = re.findall(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}", re.sub(r"\\[a-zA-Z]+(?:\{[a-z]*matrix\})?", " ", text))
    return text.isprintable() and all(word in _FUNCTIONS for word in words)
