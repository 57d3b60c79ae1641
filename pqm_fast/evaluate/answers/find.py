r"""Finds the final answer in a solution."""

import re

from pqm_fast.data.candidate import is_cut_off
from pqm_fast.data.records import Record

_INT = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_NUMBER = rf"(?:{_INT}(?:\.\d+)?|\.\d+)"
_POWER = r"\^\s?(?:\{\s?[-−+]?[\d./]+\s?\}|[-−+]?\d+)"
_FRACTION = r"\\[dtc]?frac\s*(?:\{\s*-?\d+\s*\}\s*\{\s*\d+\s*\}|\d\s*\d)"

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_is = (
    r"\b(?:answers?|(?:correct|right)[ \t]+(?:option|choice))[\s*]*"
    r"(?:(?:is|are|=|would[ \t]+be|will[ \t]+be)(?![\w])|:)[\s:*]*"
)
_MARK = re.compile(_is, re.IGNORECASE)
_MARKED = re.compile(
    r"<answer>(?P<tag>(?:(?!<answer>)(?s:.))*?)</answer>"
    r"|^#+[ \t]*(?:final[ \t]+)?answer[ \t:]*\n\s*(?P<header>\S.*)"  # PRM800K: "# Answer\n\n29"
    # Math-Shepherd: "The answer is: 29"; also on lines of its own, between delimiters of mathematics
    rf"|{_is}(?P<phrase>\$\$(?s:.{{1,300}}?)\$\$|\\\[(?s:.{{1,300}}?)\\\]|[^\s:*].*)"
    r"|^(?-i:A):[ \t]*(?P<letter>\S.*)\Z"  # "A: 29" on the last line
    r"|^####[ \t]*(?P<hashes>\S.*)\Z",  # GSM8K: "#### 29" on the last line
    re.IGNORECASE | re.MULTILINE,
)
# what may follow an answer without being part of it
_END = re.compile(
    r"(?<!\bsq)(?<!\bcu)\.(?=\s|$)|[!?](?=\s|$)|;(?=\s+[a-zA-Z]|\s*$)|,\s?(?:and )?not\s|\sand not\s"
    r"|,?\s(?:because|since|which|as|so|but|where|when|while|rather than|instead of|after)\s"
    r"|\sof\s(?:the|an?|his|her|their)\s"
    r"|\s\((?=[a-z]{2}[^()]*\)?[\s.]*\Z)"
)
_REMARK = re.compile(r",\s(?!and\b|or\b)(?=[a-z]{3,})")  # 3.5 meters, rounded to one decimal
_VERDICT = re.compile(
    r"(?:in)?correct|right|wrong|reasonable|clear|obvious|above|below|as follows|given|shown|found|unique|not\b.*",
    re.IGNORECASE,
)
_WORDS = re.compile(r"(?:[A-Za-z',]+\s+){2,}(?=[-−]?\\?\$?\.?\d)")  # It takes 5 hours
_DELIMITED = re.compile(
    r"\$([^$]+)\$|\$\$([^$]+)\$\$|\\\((.+)\\\)|\\\[(.+)\\\]|\*\*([^*]+)\*\*|`([^`]+)`|\(([A-J])\)", re.DOTALL
)
# what may come before an answer: "the total cost is", "therefore", "equal to", "option"
_LEAD = re.compile(
    r"""(?:(?:thus|therefore|hence|so|then|that|simply|just|exactly|approximately|about|around|roughly|now|indeed
      |given\ by|equal\ to|equals|option|choice|letter|obviously|clearly|found\ to\ be|to\ be)\b[\s,:]*)+""",
    re.IGNORECASE | re.VERBOSE,
)
_SENTENCE = re.compile(
    r"""(?:the|this|that|it|there|he|she|they|we|i|you|his|her|their|final|total)\b[^=\\$\d]*?
      \b(?:is|are|was|be|equals|has|have|gets?|costs?|needs?|makes?|pays?|=)[ \t*:]+(?!(?:is|are|was)\b)(?=\S)""",
    re.IGNORECASE | re.VERBOSE,
)
_CHOICE = re.compile(r"\*{0,2}\(?([A-J])(?:\)|[.:](?=\s))\*{0,2}(?:[.,]?\Z|\s(?!(?:and|or)\b|[,&]))")
_LAST_NUMBER = re.compile(
    rf"""(?P<sign>[-−]?)\\?\$?(?P<value>\d+\s*{_FRACTION}|{_FRACTION}|\d+\ \d+/\d+(?![\d/])
      |(?:{_NUMBER}[ ]?(?:[x×*]|\\times|\\cdot)[ ]?(?=10\^))?  # 2 x 10^3
       {_NUMBER}(?:e[-+]?\d+|{_POWER})?(?:/\d+)?)""",
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)


def final_answer(text: str) -> str | None:
    r"""The answer a solution ends with, as written, or None.

    It is the marked answer if there is one (`marked_answer`), else the last number or fraction in the text (so
    `a: 7 -2 =5` has the answer 5).
    """
    marked = marked_answer(text)
    if marked is not None:
        return marked
    last_number = None
    for last_number in _LAST_NUMBER.finditer(text):  # noqa: B007
        pass
    if last_number is None:
        return None
    binary = re.search(r"[\d)\]}]\s*\Z", text[max(0, last_number.start() - 20) : last_number.start()])
    return last_number["value"] if binary else last_number["sign"] + last_number["value"]


def gold_answer(text: str) -> str:
    """The right answer from the text of a data set: the answer alone, or a whole solution that ends with it (GSM8K,
    MATH)."""
    is_solution = "\n" in text.strip() or "####" in text or "box" in text or _MARK.search(text)
    return (marked_answer(text) if is_solution else None) or text


def answer_of(record: Record) -> str | None:
    """The final answer of a record's solution; None if it has none, or was cut off."""
    return None if is_cut_off(record) else final_answer("\n".join(record.steps))


def marked_answer(text: str) -> str | None:
    r"""The answer that a solution marks as such, or None.

    It is the last complete `\boxed{...}`, which forms a list with other boxes before it in the same sentence. Without a
    box it is the last of `<answer>...</answer>`, `# Answer` with the answer below it, `... answer is X` or `Answer: X`,
    and, on the last line only, `A: X` or `#### X`.
    """
    boxed = _last_boxed(text)
    if boxed:
        return boxed
    answer = None
    for match in _MARKED.finditer(text.rstrip()):
        kind = match.lastgroup or ""
        marked = match[kind].strip()
        if kind == "phrase" or (kind == "tag" and _MARK.search(marked)):
            marked = _phrase(marked)
        answer = _inside(marked) or answer
    return answer


def _phrase(text: str) -> str:
    """The value in a phrase, which may announce the answer again; empty if the phrase only calls an answer right.

    The value of "Final Answer: The final answer is 5. I hope the answer is correct." is 5.
    """
    for mark in reversed([0, *(match.end() for match in _MARK.finditer(text))][-4:]):
        value = _value(text[mark:])
        if value and not _VERDICT.fullmatch(value):
            return value
    return ""


def _value(phrase: str) -> str:
    """The value in a sentence: `The total cost is $12. ...` -> `12`."""
    phrase = _without_lead(phrase)
    if choice := _CHOICE.match(phrase):
        return choice[1]
    phrase = _END.split(phrase, maxsplit=1)[0].strip()
    if sentence := _SENTENCE.match(phrase) or _WORDS.match(phrase):
        phrase = _inside(_without_lead(phrase[sentence.end() :]))
        phrase = re.sub(r"\A\\?\$(?=[^$]*\Z)", "", phrase)
    head = _REMARK.split(phrase, maxsplit=1)[0]
    return _inside(head if re.search(r"\d", head) else phrase)


def _without_lead(phrase: str) -> str:
    lead = _LEAD.match(phrase)
    return phrase[lead.end() :] if lead else phrase


def _inside(text: str) -> str:
    """The text without delimiters of mathematics, bold or code around the whole."""
    text = text.strip()
    while match := _DELIMITED.fullmatch(text):
        text = next(filter(None, match.groups())).strip()
    return text


# what may separate the boxes of one list: `\boxed{2}$ and $x=\boxed{3}`, `\boxed{3} apples and \boxed{5} pears`
_LIST = re.compile(
    r"(?:[ \t,;$~]|\\[,;: ]|\\quad|(?:\\text\s*\{\s*)?\b(?:and|or)\b(?:\s*\})?|[a-zA-Z]\w{0,2}[ \t]*=)*"
    r"|[a-zA-Z $]{0,30}(?:,|\band\b|\bor\b)[a-zA-Z $]{0,30}"
)
_CORRECTION = re.compile(
    r"\b(?:no|not|wait|actually|instead|rather|sorry|but|however|so|thus|therefore|hence|then|which|equivalent|equivalently|i"
    r"|from|first|found|thought|wrong|right|correct|simplif\w*|answer|gives?|giving|becomes?)\b",
    re.IGNORECASE,
)


def _last_boxed(text: str) -> str | None:
    """The content of the last balanced box, in one pass; an unclosed one (a cut-off solution) is ignored."""
    if "box" not in text:
        return None
    open_braces: list[tuple[int, int] | None] = []  # where a box and its content start; None for any other brace
    boxes: list[tuple[int, int, str]] = []
    for token in _BOXED.finditer(text):
        if token[0] == "{":
            open_braces.append(None)
        elif token[0].endswith("{") and len(token[0]) > 2:  # not the escaped brace
            open_braces.append((token.start(), token.end()))
        elif token[0] == "}" and open_braces:
            opened = open_braces.pop()
            if opened is not None:
                content = text[opened[1] : token.start()].strip()
                inner = bool(boxes) and boxes[-1][0] > opened[0]  # \boxed{\boxed{5}}
                if content and not inner:
                    boxes.append((opened[0], token.end(), content))
    listed_boxes = boxes[-1:]  # in reverse order
    for box in boxes[-2::-1]:
        between = text[box[1] : listed_boxes[-1][0]] if listed_boxes[-1][0] - box[1] < 100 else "."
        if not _LIST.fullmatch(between) or _CORRECTION.search(between):
            break
        listed_boxes.append(box)
    contents = list(dict.fromkeys(box[2] for box in reversed(listed_boxes)))
    return ", ".join(contents) if contents else None
