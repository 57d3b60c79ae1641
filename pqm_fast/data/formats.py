"""The data formats in use: how each is recognised from its fields, and its raw record -> `Record`s.

Every `_parse` function takes (raw object, record id, options), raises `FormatError` for what it cannot use and
builds its records with `_record`, where steps and labels are checked once for all formats.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError

FormatName = Literal[
    "auto", "trl", "math-shepherd", "prm800k", "openrlhf", "openr", "processbench", "pool"
]


@dataclass(frozen=True)
class ReadOptions:
    """How records are read. Raises `PQMError` for a value that is none of its choices.

    Neutral PRM800K steps count as correct by default because its paper ("Let's Verify Step by Step", section 2.6
    and appendix F) does so when it scores solutions: such a step is suboptimal or odd, not an error.
    """

    format: FormatName = "auto"
    """Format of the records; auto recognises it from the fields of the first record of each file."""
    neutral: Literal["correct", "wrong", "unlabelled"] = "correct"
    """What a PRM800K step rated 0 (neutral) counts as."""
    after_error: Literal["unlabelled", "wrong"] = "unlabelled"
    """What ProcessBench steps after the first error count as."""
    step_marker: str = "ки"
    """Text that ends each step in Math-Shepherd, OpenRLHF and OpenR records; blanks around it are dropped."""
    skip_bad: bool = False
    """Skip bad records, with a counted summary, instead of stopping at the first."""

    def __post_init__(self) -> None:
        choices = {"format": get_args(FormatName), "neutral": tuple(_NEUTRAL), "after_error": tuple(_AFTER_ERROR)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise PQMError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        if not self.step_marker.strip():
            raise PQMError("step_marker is blank; give the text that ends each step")


_NEUTRAL: dict[str, float | None] = {"correct": 1.0, "wrong": 0.0, "unlabelled": None}
_AFTER_ERROR: dict[str, float | None] = {"unlabelled": None, "wrong": 0.0}


class FormatError(ValueError):
    """A raw record that cannot be used. `kind` groups such errors in a summary; the text is "found; what to do"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_TYPE_NAMES: dict[type, str] = {str: "text", list: "a list", dict: "an object", int: "a whole number"}


def _typed(value: Any, name: str, kind: type) -> Any:
    """`value`, checked to be a `kind`; `name` is how a message calls it. Raises `FormatError`."""
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        if kind is str and not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise FormatError("broken text", f"{name} holds half a surrogate pair; repair its encoding")
        return value
    if kind is str and isinstance(value, list) and value and isinstance(value[0], dict) and "content" in value[0]:
        raise FormatError(
            "wrong type", f"{name} is a list of chat messages; it must be text: give the content of the message alone"
        )
    raise FormatError(
        "wrong type", f"{name} is {_show(value)} ({type(value).__name__}); it must be {_TYPE_NAMES[kind]}"
    )


def _field(raw: dict[str, Any], name: str, kind: type, owner: str = "") -> Any:
    """Field `name` of `raw`, checked to be there (null is absent) and of type `kind`. Raises `FormatError`."""
    if raw.get(name) is None:
        found = ", ".join(raw) or "none"
        raise FormatError("missing field", f"field {owner}{name} is missing (fields found: {found}); add it")
    return _typed(raw[name], f"{owner}{name}", kind)


def _rest(raw: dict[str, Any], *used: str) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in used and key != "id"}


def _label(value: Any, place: str) -> float | None:
    if value is None:
        return None
    # NaN fails the comparison too
    if not isinstance(value, (bool, int, float)) or not 0 <= value <= 1:
        raise FormatError(
            "bad label",
            f"{place} is {_show(value)}; a label is true, false or a number from 0 to 1 (null: no label for the step)",
        )
    return float(value)


def _record(id: str, prompt: str, steps: Any, labels: Any, extra: dict[str, Any]) -> Record:
    """The record, after the checks that all formats share. Raises `FormatError`."""
    if not prompt.strip():
        raise FormatError("empty question", "the question is empty; give its text or remove the record")
    if not steps:
        raise FormatError("no steps", "there are no steps; give at least one or remove the record")
    for number, step in enumerate(steps, 1):
        if not _typed(step, f"step {number}", str).strip():
            raise FormatError("empty step", f"step {number} of {len(steps)} is empty; remove it and its label")
    if labels is not None:
        if len(_typed(labels, "labels", list)) != len(steps):
            raise FormatError(
                "labels and steps of different length",
                f"{len(labels)} labels for {len(steps)} steps; give one label per step (null: no label)",
            )
        labels = [_label(value, f"label {number}") for number, value in enumerate(labels, 1)]
        if all(label is None for label in labels):
            labels = None
    return Record(id, prompt, steps, labels, extra)


def _parse_trl(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`prompt`, `completions`, `labels` (may be absent): TRL's stepwise type, and what `score` writes."""
    prompt, steps = _field(raw, "prompt", str), _field(raw, "completions", list)
    return [_record(id, prompt, steps, raw.get("labels"), _rest(raw, "prompt", "completions", "labels"))]


def _split_steps(text: str, marker: str) -> list[str]:
    """The steps of a text in which `marker` ends each of them. Raises `FormatError`."""
    *steps, tail = text.split(marker)
    if tail.strip():
        found = f"text after the last step marker {marker!r}: {_show(tail.strip())}" if steps else ""
        raise FormatError(
            "step markers",
            f"{found or f'no step marker {marker!r} in the text'}; each step must end with it (or set step_marker)",
        )
    return [step.strip() for step in steps]


# Math-Shepherd writes a few of them in lower case
_FIRST_STEP = re.compile("step 1:", re.IGNORECASE)


def _split_question(text: str, marker: str) -> tuple[str, list[str]]:
    """(question, steps) of a text that holds both: the question ends where "Step 1:" begins."""
    match = _FIRST_STEP.search(text)
    if match is None:
        raise FormatError("no first step", 'input holds no "Step 1:"; it must begin the first step')
    question = text[: match.start()]
    if marker in question:
        raise FormatError("step markers", f'a step marker {marker!r} stands before "Step 1:"; remove it and its label')
    return question.strip(), _split_steps(text[match.start() :], marker)


def _parse_math_shepherd(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`input`, `label`: one text twice, with a marker at each step's end in one, + or - there in the other."""
    text, signed, marker = _field(raw, "input", str), _field(raw, "label", str), options.step_marker
    question, steps = _split_question(text, marker)
    labels, position = [], 0
    for number, part in enumerate(text.split(marker)[:-1], 1):
        end = position + len(part)
        # equal texts too: signs of another solution would be wrong labels that nothing shows later
        if signed[position:end] != part or signed[end : end + 1] not in ("+", "-"):
            raise FormatError(
                "step markers",
                f"label reads {_show(signed[max(position, end - 20) : end + 1])} at the end of step {number}; it must "
                f"repeat input with + or - in place of each {marker!r}",
            )
        labels.append(float(signed[end] == "+"))
        position = end + 1
    if signed[position:].strip():
        raise FormatError("step markers", f"label goes on after the last step: {_show(signed[position:])}; cut it there")
    return [_record(id, question, steps, labels, _rest(raw, "input", "label"))]


def _signs(values: Any, name: str) -> Any:
    """The labels with + and - as numbers; None stays None, and `_record` judges the rest."""
    signs = {"+": 1.0, "-": 0.0}
    return values and [signs.get(v, v) if isinstance(v, str) else v for v in _typed(values, name, list)]


def _parse_openrlhf(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`input`: question and steps with markers; `value`: a list of "+" and "-", or of numbers."""
    values = _field(raw, "value", list)
    question, steps = _split_question(_field(raw, "input", str), options.step_marker)
    return [_record(id, question, steps, _signs(values, "value"), _rest(raw, "input", "value"))]


def _parse_openr(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`question`, `process` with markers, `labels` (some OpenR files: `label`): "+" and "-", or numbers."""
    name = "label" if raw.get("labels") is None else "labels"
    question = _field(raw, "question", str).strip()
    steps = _split_steps(_field(raw, "process", str), options.step_marker)
    return [_record(id, question, steps, _signs(raw.get(name), name), _rest(raw, "question", "process", name))]


def _parse_prm800k(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """Raw PRM800K: the path of chosen completions, then each rated alternative behind the path that led to it.

    Where the path stops at a step of which nothing was chosen, it is only the beginning of that step's alternatives
    and no trajectory of its own.
    """
    question, label = _field(raw, "question", dict), _field(raw, "label", dict)
    ratings = {1: 1.0, 0: _NEUTRAL[options.neutral], -1: 0.0, None: None}

    def step(completion: Any, place: str) -> tuple[str, float | None]:
        text = _field(_typed(completion, place, dict), "text", str, f"{place}: ")
        rating = completion.get("rating")
        if isinstance(rating, (bool, str, list, dict)) or rating not in ratings:
            raise FormatError("bad label", f"{place}: rating is {_show(rating)}; it must be 1, 0, -1 or null")
        return text, ratings[rating]

    path: list[tuple[str, float | None]] = []
    alternatives: list[list[tuple[str, float | None]]] = []
    ended = True
    for number, entry in enumerate(_field(label, "steps", list, "label."), 1):
        place = f"step {number}"
        entry = _typed(entry, place, dict)
        completions = _typed(entry.get("completions") or [], f"{place}: completions", list)
        chosen = entry.get("chosen_completion")
        if chosen is not None and not 0 <= _typed(chosen, f"{place}: chosen_completion", int) < len(completions):
            raise FormatError("bad choice", f"{place}: completion {chosen} of {len(completions)} chosen; mend the index")
        others = [
            [*path, step(completion, f"{place}, completion {index}")]
            for index, completion in enumerate(completions)
            if index != chosen and _typed(completion, f"{place}, completion {index}", dict).get("rating") is not None
        ]
        alternatives += others
        if chosen is not None:
            path.append(step(completions[chosen], f"{place}, completion {chosen}"))
        elif entry.get("human_completion") is not None:
            text, _ = step(entry["human_completion"], f"{place}, human completion")
            path.append((text, None))
        else:
            ended = not others
            break
    trajectories = [path, *alternatives] if ended and path else alternatives or [[]]
    extra = _rest(raw, "question", "label")
    extra |= {"answer": question.get("ground_truth_answer"), "finish_reason": label.get("finish_reason")}
    problem = _field(question, "problem", str, "question.")
    return [
        _record(
            id if len(trajectories) == 1 else f"{id}/{k}",
            problem,
            [text for text, _ in trajectory],
            [rating for _, rating in trajectory],
            dict(extra),
        )
        for k, trajectory in enumerate(trajectories, 1)
    ]


def _parse_processbench(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`problem`, `steps`, `label`: the index of the first wrong step from 0, or -1 for none."""
    steps, labels = _field(raw, "steps", list), None
    if raw.get("label") is not None:
        first, count = _field(raw, "label", int), len(steps)
        if not -1 <= first < count:
            raise FormatError("bad label", f"label is {first}; it must be -1 or the index of one of the {count} steps")
        correct = count if first == -1 else first
        labels = [1.0] * correct + [0.0, *[_AFTER_ERROR[options.after_error]] * (count - correct - 1)][: count - correct]
    return [_record(id, _field(raw, "problem", str), steps, labels, _rest(raw, "problem", "steps", "label"))]


def _parse_pool(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`question`, `responses`: candidate solutions as `text` (a step a line) or `steps`; one record each."""
    question = _field(raw, "question", str)
    question_id = explicit_id(raw, "question_id") or id
    shared = _rest(raw, "question", "responses", "question_id")
    records = []
    for k, response in enumerate(_field(raw, "responses", list), 1):
        place = f"response {k}: "
        steps = _typed(response, f"response {k}", dict).get("steps")
        if steps is None:
            # not splitlines: it would also cut at characters that occur inside a line
            steps = [line.strip() for line in _field(response, "text", str, place).split("\n") if line.strip()]
        # the question's fields last: its `answer` is the right one, a response's only what was extracted from it
        extra = {**_rest(response, "text", "steps", "model_name"), **shared, "question_id": question_id}
        if response.get("model_name") is not None:
            extra["policy"] = response["model_name"]
        try:
            records.append(_record(f"{question_id}/{k}", question, _typed(steps, f"{place}steps", list), None, extra))
        except FormatError as error:
            raise FormatError(error.kind, f"{place}{error}") from None
    if not records:
        raise FormatError("no steps", "responses is an empty list; give at least one or remove the record")
    return records


@dataclass(frozen=True)
class Format:
    """The fields that tell a format (a dot goes into an object), and its parser."""

    fields: tuple[str, ...]
    parse: Callable[[dict[str, Any], str, ReadOptions], list[Record]]

    def fits(self, raw: dict[str, Any]) -> bool:
        return all(_has(raw, name) for name in self.fields)


# openrlhf before math-shepherd: the copies of Math-Shepherd made for it keep `label` beside `value`
FORMATS: dict[str, Format] = {
    "trl": Format(("prompt", "completions"), _parse_trl),
    "openrlhf": Format(("input", "value"), _parse_openrlhf),
    "math-shepherd": Format(("input", "label"), _parse_math_shepherd),
    "openr": Format(("question", "process"), _parse_openr),
    "pool": Format(("question", "responses"), _parse_pool),
    "prm800k": Format(("question.problem", "label.steps"), _parse_prm800k),
    "processbench": Format(("problem", "steps"), _parse_processbench),
}


def _has(raw: Any, name: str) -> bool:
    for key in name.split("."):
        raw = raw.get(key) if isinstance(raw, dict) else None
    return raw is not None


def recognise(raw: dict[str, Any]) -> str:
    """The name of the format that has the fields of `raw`. Raises `FormatError`."""
    for name, known in FORMATS.items():
        if known.fits(raw):
            return name
    formats = ", ".join(f"{name} ({', '.join(known.fields)})" for name, known in FORMATS.items())
    raise FormatError(
        "unknown format", f"fields {', '.join(raw) or 'none'} are of no known format; the formats are {formats}"
    )


def explicit_id(raw: dict[str, Any], name: str = "id") -> str | None:
    """The record's own id as text, None where it has none. Raises `FormatError`."""
    value = raw.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise FormatError("wrong type", f"{name} is {_show(value)}; it must be text or a whole number")
    return str(value)
