"""Formats with a solution as one text in which a marker ends each step: Math-Shepherd, OpenRLHF's copies, OpenR."""

import re
from typing import Any

from pqm_fast.data.checks import FormatError, field, record, rest, show, typed
from pqm_fast.data.formats.options import ReadOptions
from pqm_fast.data.records import Record

# whole words, because "Substep 1:" does not begin a solution; Math-Shepherd has a few in lower case
_FIRST_STEP = re.compile(r"(?<!\w)(?:(?<!#)#+ *|\*\*)?step 1:", re.IGNORECASE)
_CLOSING = " \t\"'\u2019\u201d)]}$*"  # may follow the mark that ends a sentence


def first_steps(text: str) -> list[int]:
    """The positions of each "Step 1:" in `text`."""
    return [match.start() for match in _FIRST_STEP.finditer(text)]


def likeliest(begins: list[int], text: str) -> int:
    """The "Step 1:" that begins the solution: the last one after a line break or the end of a sentence (within a
    sentence it is only mentioned), or else the last of all."""
    return next((begin for begin in reversed(begins) if _opens_sentence(text, begin)), begins[-1])


def _opens_sentence(text: str, begin: int) -> bool:
    while begin and text[begin - 1] in _CLOSING:
        begin -= 1
    return begin > 0 and text[begin - 1] in "\n.?!\u3002\uff1f\uff01"


def _split_steps(text: str, marker: str) -> list[str]:
    """The steps of a text in which `marker` ends each step. Raises `FormatError`."""
    *steps, tail = text.split(marker)
    if not marker.strip():  # one or several line breaks between the steps
        return [step.strip() for step in (*steps, tail) if step.strip()]
    if tail.strip():
        problem = f"text after the last step marker {marker!r}: {show(tail.strip())}"
        if not steps:
            problem = f"no step marker {marker!r} in the text"
        raise FormatError("step markers", f"{problem}; each step must end with it (or set step_marker)")
    return [step.strip() for step in steps]


def _question_end(text: str, marker: str) -> int:
    """The position at which the steps begin in a text that starts with the question: the likeliest "Step 1:" before the
    first marker, because the question may contain steps itself. Raises `FormatError`."""
    # a question may contain line breaks, so a marker of line breaks does not show where the solution begins
    first_marker = text.find(marker) if marker.strip() else -1
    begins = first_steps(text)
    if not begins:
        raise FormatError("no first step", 'input holds no "Step 1:"; it must begin the first step')
    if not marker.strip() and len(begins) > 1:
        problem = 'input holds "Step 1:" more than once and no marker but line breaks'
        raise FormatError("no first step", f"{problem}; put a marker after each step and name it (step_marker)")
    begins = [begin for begin in begins if first_marker == -1 or begin < first_marker]
    if not begins:
        raise FormatError("step markers", f'a step marker {marker!r} comes before "Step 1:"; remove it and its label')
    return likeliest(begins, text)


def parse_math_shepherd(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`input`, `label`: the same text twice; where `input` has a marker at the end of a step, `label` has + or -."""
    text, signed, marker = field(raw, "input", str), field(raw, "label", str), options.step_marker
    begin = _question_end(text, marker)
    question, steps = text[:begin].strip(), _split_steps(text[begin:], marker)
    signs, position = [], 0
    for number, part in enumerate(text[begin:].split(marker)[:-1], 1):
        part = text[:begin] + part if number == 1 else part
        end = position + len(part)
        # compare the texts too: signs of another solution would be wrong labels, and nothing would show it later
        if signed[position:end] != part or signed[end : end + 1] not in ("+", "-"):
            raise FormatError(
                "step markers",
                f"label reads {show(signed[max(position, end - 20) : end + 1])} at the end of step {number}; "
                f"it must repeat input with + or - in place of each {marker!r}",
            )
        signs.append(signed[end])
        position = end + 1
    if signed[position:].strip():
        raise FormatError(
            "step markers", f"label continues after the last step: {show(signed[position:])}; cut it there"
        )
    return [record(id, question, steps, _signs(signs, "label", options), rest(raw, "input", "label"))]


def _signs(values: Any, name: str, options: ReadOptions) -> Any:
    """The labels with + and - as numbers. None stays None, and `record` checks the rest."""
    if options.label_map is not None:
        return options.labels(values, name)
    if values is None:
        return None
    signs = {"+": 1.0, "-": 0.0}
    return [signs.get(value, value) if isinstance(value, str) else value for value in typed(values, name, list)]


def parse_openrlhf(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`input`: question and steps with markers; `value`: a list of "+" and "-", or of numbers."""
    values, text = field(raw, "value", list), field(raw, "input", str)
    begin = _question_end(text, options.step_marker)
    steps = _split_steps(text[begin:], options.step_marker)
    return [record(id, text[:begin].strip(), steps, _signs(values, "value", options), rest(raw, "input", "value"))]


def parse_openr(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`question`, `process` with markers, `labels` (some OpenR files: `label`): "+" and "-", or numbers."""
    name = "label" if raw.get("labels") is None else "labels"
    question, process, marker = field(raw, "question", str).strip(), field(raw, "process", str), options.step_marker
    labels = _signs(raw.get(name), name, options)
    # MATH-APS labels a whole prefix of a solution, in which a blank line does not separate steps
    labels_prefix = labels is not None and len(labels) == 1 and (not marker.strip() or marker not in process)
    steps = [process.strip()] if labels_prefix else _split_steps(process, marker)
    return [record(id, question, steps, labels, rest(raw, "question", "process", name))]
