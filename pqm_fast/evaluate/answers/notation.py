r"""Gives one spelling to the many ways of writing mathematics: Unicode, LaTeX with its spaces and delimiters, and code.

`２½`, `2\tfrac12` -> `2 1/2`, `2\frac12`      `x²≤3·π` -> `x^{2}\le 3\cdot \pi `      `\(5\)`, `$5$` -> `5`
"""

import re
import unicodedata

from pqm_fast.evaluate.answers.expression import FUNCTION_WORDS

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎", "0123456789+-=()")
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta",
    "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau",
    "φ": "phi", "ϕ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta",
    "Λ": "Lambda", "Ξ": "Xi", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("−–—‐‑‒﹣－", "-"),
        **dict.fromkeys("·⋅∙•", r"\cdot "),
        **dict.fromkeys("×✕✖", r"\times "),
        "∗": "*",
        **dict.fromkeys("∕⁄／", "/"),
        **dict.fromkeys("≤⩽≦", r"\le "),
        **dict.fromkeys("≥⩾≧", r"\ge "),
        **dict.fromkeys("‘’′＇", "'"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u200e\u200f", ""),
        **dict.fromkeys("″＂“”", '"'),
        **dict.fromkeys("∘º˚", "°"),
        **dict.fromkeys("∣｜", "|"),
        "⌊": r"\lfloor ",
        "⌋": r"\rfloor ",
        "⌈": r"\lceil ",
        "⌉": r"\rceil ",
        "‰": "/1000",
        "、": ", ",
        "∶": ":",
        "٫": ".",
        "∖": r"\setminus ",
        "ℝ": r"\mathbb{R}",
        "÷": r"\div ",
        "≠": r"\ne ",
        "≈": r"\approx ",
        "≡": r"\equiv ",
        "±": r"\pm ",
        "∓": r"\mp ",
        "∞": r"\infty ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∈": r"\in ",
        "∅": r"\emptyset ",
        "⟨": r"\langle ",
        "⟩": r"\rangle ",
        "∑": r"\sum ",
        "∫": r"\int ",
        "→": r"\to ",
        **{letter: rf"\{name} " for letter, name in _GREEK.items()},
    }
)
_FRACTION = re.compile(r"(?<=\d)?([¼-¾⅐-⅞↉])")
_ROOT = re.compile(r"([√∛∜])\s*(\d+(?:\.\d+)?|[a-zA-Z]|(?=[({]))")
_LOOK = r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|mathit|mathsf|operatorname\*?|emph|boldsymbol|bm)\s*"
_REWRITE = [
    (re.compile(pattern), new)
    for pattern, new in [
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?", ""),
        (r"\\(?:displaystyle|textstyle|limits|nolimits)(?![a-zA-Z])", ""),
        (r"\\(?:leq|leqslant)(?![a-zA-Z])|<=", r"\\le "),
        (r"\\(?:geq|geqslant)(?![a-zA-Z])|>=", r"\\ge "),
        (r"\\neq(?![a-zA-Z])|!=", r"\\ne "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\\(?:varnothing|emptyset)(?![a-zA-Z])", r"\\emptyset "),
        (r"\\(?:ast|star|centerdot)(?![a-zA-Z])", r"\\cdot "),
        (r"\\(?:quad|qquad|thinspace|enspace|nobreak)(?![a-zA-Z])", " "),
        (r"\^\s*\{\s*\\(?:circ|degrees?)\s*\}|(?:\^\s*\\(?:circ|degrees?)|\\degrees?)(?![a-zA-Z])|°", " degrees "),
        (r"\{,\}", ","),
        (r"(?<!\\)\\[!()\[\]]", ""),  # delimiters of mathematics
        (r"(?<!\\)\\[,;: ]", " "),  # spaces of mathematics, but not a line break \\
        (r"\*\*(?=\s|\Z)|(?:\A|(?<=\s))\*\*", ""),  # bold of Markdown, not a power
        (rf"{_LOOK}\{{\s*(or|and)\s*\}}", r" \1 "),
        (r"\\(?:lor|vee)(?![a-zA-Z])", " or "),
        (rf"{_LOOK}\{{\s*([A-Zei])\s*\}}", r"\1 "),  # a small letter may be a unit
        (rf"{_LOOK}\{{\s*({'|'.join(sorted(FUNCTION_WORDS))})\s*\}}", r"\\\1 "),
        (r"(?<![\\a-zA-Z])(?:math|np|numpy|sp|sympy)\.(?=[a-z])", ""),  # code
        (r"(?<=\d)j(?![a-zA-Z])", "i"),
        (r"(?<![\w.])0b([01]+)(?!\w)", r"\1_2"),
        (r"(?<=\.)(\d*)\\bar\s*(?=\{)", r"\1\\overline"),
        (r"(?<![a-zA-Z])\\?(sin|cos|tan|ln|log)(?=[a-z](?![a-zA-Z]))", r"\\\1 "),  # sinx
        (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi "),
        (r"(?<![\\a-zA-Z])log(2|10)(?=\s*\()", r"\\log_{\1}"),
        (r"(?<![\\a-zA-Z])(?:infinity|oo|inf)(?![a-zA-Z])", r"\\infty "),
        (r"(?<![\\a-zA-Z\d])([xyz])(\d)(?![\d.])", r"\1_\2"),  # x1 is not a product
        (r"\s+", " "),
    ]
]
_WHOLE = re.compile(rf"\s*(?:{_LOOK}|\\(?:boxed|fbox)\s*)\{{([^{{}}]*)\}}\s*\Z")
_TEXT = re.compile(rf"{_LOOK}\{{([^{{}}]*)\}}")
_ENDS = re.compile(r"(?:[\s.,;:]|\\\\)+\Z")
_RECURRING = re.compile(r"(\d*\.\d*?)(\d+?)\2+\s*(?:\.{3}|…|\\[lc]?dots)")  # 0.1666...
_THOUSANDS = re.compile(r"(?<![\d.,])(?<!\d )\d{1,3}(?: \d{3})+(?!,?\d| ?\d|\s*/)")  # 1 000 000


def normalise(answer: str) -> str:
    """The answer as one line of LaTeX or plain text. A single dollar, euro, pound or cent sign is money and stays; a
    pair of dollar signs delimits mathematics and is removed."""
    text = answer.replace("³√", "∛").replace("⁴√", "∜")
    text = re.sub(
        r"([⁰¹²³⁴-⁹]+)[⁄/]([₀-₉]+)", lambda m: (m[1] + "/" + m[2]).translate(_SUPERSCRIPTS | _SUBSCRIPTS), text
    )
    text = re.sub(r"(\d)\u0305", r"\\overline{\1}", text)
    text = re.sub(r"[⁰¹²³⁴-⁹⁺⁻⁼⁽⁾ⁿⁱ]+", lambda run: "^{" + run[0].translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub(r"[₀-₎]+", lambda run: "_{" + run[0].translate(_SUBSCRIPTS) + "}", text)
    text = _FRACTION.sub(_vulgar, text)
    text = _ROOT.sub(_root, text).translate(_SIGNS)
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    text = "".join(str(unicodedata.decimal(c)) if not c.isascii() and c.isdecimal() else c for c in text)
    text = text.replace("~", " ")
    if len(re.findall(r"(?<!\\)\$", text)) != 1:
        text = re.sub(r"(?<!\\)\$", "", text)
    for pattern, new in _REWRITE:
        text = pattern.sub(new, text)
    text = re.sub(r"\\frac ?(\d) (?=\d)", r"\\frac\1", text)
    text = re.sub(r"(?<=\d) ?[xX*] ?(?=10\s*(?:\^|\*\*))", r"\\times ", text)  # 2 x 10^3
    text = re.sub(r"(?<=\d) ?degrees ?C\b", " celsius", re.sub(r"(?<=\d) ?degrees ?F\b", " fahrenheit", text))
    text = re.sub(r"(\d+) ?' ?(\d+) ?(?:\"|'')", r"\1 feet \2 inches", text)
    text = _RECURRING.sub(r"\1\\overline{\2}", text)
    while whole := _WHOLE.match(text):
        text = whole[1]
    text = _TEXT.sub(lambda styled: rf"\text{{{styled[1]}}}", text)
    text = _THOUSANDS.sub(lambda group: group[0].replace(" ", ""), text)
    return _ENDS.sub("", text).strip()


def _vulgar(match: re.Match[str]) -> str:
    text = unicodedata.normalize("NFKC", match[1]).replace("⁄", "/")
    before = match.string[: match.start()]
    return f" {text}" if before[-1:].isdecimal() else text


def _root(match: re.Match[str]) -> str:
    index = {"√": "", "∛": "[3]", "∜": "[4]"}[match[1]]
    return rf"\sqrt{index}{{{match[2]}}}" if match[2] else rf"\sqrt{index}"
