"""The data formats in use: how each is recognised from its fields, and its raw record -> `Record`s.

Every `_parse` function takes (raw object, record id, options), raises `FormatError` for what it cannot use
and builds its records with `record`, where steps and labels are checked once for all formats.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pqm_fast.data.checks import FormatError, explicit_id, field, record, rest, show, typed
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError
from pqm_fast.options import Text

FormatName = Literal["auto", "trl", "math-shepherd", "prm800k", "openrlhf", "openr", "processbench", "pool"]


@dataclass(frozen=True)
class ReadOptions:
    """How records are read.

    Neutral PRM800K steps count as correct by default because its paper does so when it scores solutions
    ("Let's Verify Step by Step", arXiv 2305.20050, appendix F): such a step may be odd or a detour, but it is
    not an error.
    """

    format: FormatName = "auto"
    """Format of the records; auto recognises it from the fields of the first record of each file."""
    neutral: Literal["correct", "wrong", "unlabelled"] = "correct"
    """What a PRM800K step rated 0 (neutral) counts as."""
    after_error: Literal["unlabelled", "wrong"] = "unlabelled"
    """What ProcessBench steps after the first error count as."""
    step_marker: Text = "ки"
    """Text that ends each step in Math-Shepherd, OpenRLHF and OpenR records; blanks around it are dropped."""
    skip_bad: bool = False
    """Skip bad records, with a counted summary, instead of stopping at the first."""

    def __post_init__(self) -> None:
        choices = {
            "format": get_args(FormatName),
            "neutral": tuple(_NEUTRAL),
            "after_error": tuple(_AFTER_ERROR),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise PQMError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        if not self.step_marker.strip():
            raise PQMError("step_marker is blank; give the text that ends each step")


_NEUTRAL: dict[str, float | None] = {"correct": 1.0, "wrong": 0.0, "unlabelled": None}
_AFTER_ERROR: dict[str, float | None] = {"unlabelled": None, "wrong": 0.0}


def _parse_trl(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`prompt`, `completions`, `labels` (may be absent): TRL's stepwise type, and what `score` writes."""
    prompt, steps = field(raw, "prompt", str), field(raw, "completions", list)
    return [record(id, prompt, steps, raw.get("labels"), rest(raw, "prompt", "completions", "labels"))]


def _split_steps(text: str, marker: str) -> list[str]:
    """The steps of a text in which `marker` ends each of them. Raises `FormatError`."""
    *steps, tail = text.split(marker)
    if tail.strip():
        found = f"text after the last step marker {marker!r}: {show(tail.strip())}"
        if not steps:
            found = f"no step marker {marker!r} in the text"
        raise FormatError("step markers", f"{found}; each step must end with it (or set step_marker)")
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
    """`input`, `label`: one text twice, with a marker at each step's end, then + or - in its place."""
    text, signed, marker = field(raw, "input", str), field(raw, "label", str), options.step_marker
    question, steps = _split_question(text, marker)
    labels, position = [], 0
    for number, part in enumerate(text.split(marker)[:-1], 1):
        end = position + len(part)
        # equal texts too: signs of another solution would be wrong labels that nothing shows later
        if signed[position:end] != part or signed[end : end + 1] not in ("+", "-"):
            raise FormatError(
                "step markers",
                f"label reads {show(signed[max(position, end - 20) : end + 1])} at the end of step {number}; "
                f"it must repeat input with + or - in place of each {marker!r}",
            )
        labels.append(float(signed[end] == "+"))
        position = end + 1
    if signed[position:].strip():
        raise FormatError("step markers", f"label goes on after the last step: {show(signed[position:])}; cut it there")
    return [record(id, question, steps, labels, rest(raw, "input", "label"))]


def _signs(values: Any, name: str) -> Any:
    """The labels with + and - as numbers; None stays None, and `record` judges the rest."""
    signs = {"+": 1.0, "-": 0.0}
    return values and [signs.get(v, v) if isinstance(v, str) else v for v in typed(values, name, list)]


def _parse_openrlhf(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`input`: question and steps with markers; `value`: a list of "+" and "-", or of numbers."""
    values = field(raw, "value", list)
    question, steps = _split_question(field(raw, "input", str), options.step_marker)
    return [record(id, question, steps, _signs(values, "value"), rest(raw, "input", "value"))]


def _parse_openr(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`question`, `process` with markers, `labels` (some OpenR files: `label`): "+" and "-", or numbers."""
    name = "label" if raw.get("labels") is None else "labels"
    question = field(raw, "question", str).strip()
    steps = _split_steps(field(raw, "process", str), options.step_marker)
    return [record(id, question, steps, _signs(raw.get(name), name), rest(raw, "question", "process", name))]


def _rated(completion: Any, place: str) -> tuple[str, int | None]:
    """(text, rating) of one PRM800K completion. Raises `FormatError`."""
    text = field(typed(completion, place, dict), "text", str, f"{place}: ")
    rating = completion.get("rating")
    if rating is not None and typed(rating, f"{place}: rating", int) not in (-1, 0, 1):
        raise FormatError("bad label", f"{place}: rating is {rating}; it must be 1, 0, -1 or null")
    return text, rating


def _trajectories(steps: list[Any]) -> list[list[tuple[str, int | None]]]:
    """PRM800K: the path of chosen completions, then each rated alternative behind the path that led to it.

    A path that stops at a step of which nothing was chosen is the mere beginning of that step's alternatives,
    and no trajectory of its own. What a person wrote has no rating. Raises `FormatError`.
    """
    path: list[tuple[str, int | None]] = []
    alternatives: list[list[tuple[str, int | None]]] = []
    for number, entry in enumerate(steps, 1):
        place = f"step {number}"
        listed = typed(typed(entry, place, dict).get("completions") or [], f"{place}: completions", list)
        completions = [_rated(completion, f"{place}, completion {k}") for k, completion in enumerate(listed)]
        chosen, human = entry.get("chosen_completion"), entry.get("human_completion")
        if chosen is not None and not 0 <= typed(chosen, f"{place}: chosen_completion", int) < len(listed):
            raise FormatError("bad choice", f"{place}: chosen_completion is {chosen} of {len(listed)}; mend it")
        others = [[*path, c] for k, c in enumerate(completions) if k != chosen and c[1] is not None]
        alternatives += others
        if chosen is not None:
            path.append(completions[chosen])
        elif human is not None:
            path.append((_rated(human, f"{place}, human completion")[0], None))
        elif others:
            return alternatives
        else:
            break
    return [path, *alternatives]


def _parse_prm800k(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`question.problem` and `label.steps`: raw PRM800K, with ratings 1, 0, -1; see `_trajectories`."""
    question, label = field(raw, "question", dict), field(raw, "label", dict)
    problem = field(question, "problem", str, "question.")
    trajectories = _trajectories(field(label, "steps", list, "label."))
    labels = {1: 1.0, 0: _NEUTRAL[options.neutral], -1: 0.0, None: None}
    extra = rest(raw, "question", "label")
    extra |= {"answer": question.get("ground_truth_answer"), "finish_reason": label.get("finish_reason")}
    return [
        record(
            id if len(trajectories) == 1 else f"{id}/{k}",
            problem,
            [text for text, _ in trajectory],
            [labels[rating] for _, rating in trajectory],
            dict(extra),
        )
        for k, trajectory in enumerate(trajectories, 1)
    ]


def _parse_processbench(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`problem`, `steps`, `label`: the index of the first wrong step from 0, or -1 for none."""
    steps, labels = field(raw, "steps", list), None
    if raw.get("label") is not None:
        first, count = field(raw, "label", int), len(steps)
        if not -1 <= first < count:
            raise FormatError("bad label", f"label is {first}; it must be -1 or the index of one of the {count} steps")
        after = [_AFTER_ERROR[options.after_error]] * (count - first - 1)
        labels = [1.0] * count if first == -1 else [1.0] * first + [0.0] + after
    return [record(id, field(raw, "problem", str), steps, labels, rest(raw, "problem", "steps", "label"))]


def _parse_pool(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`question`, `responses`: solutions as `text` (a step a line) or `steps`, maybe `labels`; one record each."""
    question = field(raw, "question", str)
    question_id = explicit_id(raw, "question_id") or id
    shared = rest(raw, "question", "responses", "question_id")
    records = []
    for k, response in enumerate(field(raw, "responses", list), 1):
        place = f"response {k}: "
        steps = typed(response, f"response {k}", dict).get("steps")
        if steps is None:
            # not splitlines: it would also cut at characters that occur inside a line
            steps = [line.strip() for line in field(response, "text", str, place).split("\n") if line.strip()]
        # the question's fields last: its `answer` is the right one, a response's was extracted from its text
        extra = {**rest(response, "text", "steps", "labels", "model_name"), **shared, "question_id": question_id}
        if response.get("model_name") is not None:
            extra["policy"] = response["model_name"]
        try:
            typed(steps, "steps", list)
            records.append(record(f"{question_id}/{k}", question, steps, response.get("labels"), extra))
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
        "unknown format",
        f"fields {', '.join(raw) or 'none'} are of no known format; the formats are {formats}",
    )
