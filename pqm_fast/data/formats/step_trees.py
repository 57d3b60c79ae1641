"""Trees of steps, where solutions of one question share their first steps: PRM800K, and MATH-APS with its prefixes.

A record is a path through the tree, and a label stands in one record only, the first that has its step: what five
alternatives share was judged once, so it counts once.
"""

import re
from typing import Any, NamedTuple

from pqm_fast.data.checks import FormatError, explicit_id, field, record, rest, show, typed
from pqm_fast.data.formats.options import ReadOptions
from pqm_fast.data.records import Record


class _Step(NamedTuple):
    text: str
    label: float | None


_Path = list[_Step]
_LINE_BREAK = re.compile(r"[^\S\n]*\n")  # a prefix may also end within a line: `x = 2` of `x = 2 + 3`


def _records(id: str, question: str, paths: list[_Path], extra: dict[str, Any]) -> list[Record]:
    """A record per path, where a step that an earlier one has behind the same steps is repeated without its label. A
    later path that adds no label is no record: the same alternative listed twice."""
    labelled: dict[tuple[str, ...], float] = {}
    kept: list[tuple[list[str], list[float | None]]] = []
    for path in paths:
        texts, labels = [step.text for step in path], []
        for depth, step in enumerate(path, 1):
            place = tuple(texts[:depth])
            labels.append(None if place in labelled else step.label)
            if step.label is not None and labelled.setdefault(place, step.label) != step.label:
                found = f"step {depth} {show(step.text)} has the labels {labelled[place]} and {step.label}"
                raise FormatError("two labels", f"{found} behind the same steps; give it one")
        if not kept or any(label is not None for label in labels):
            kept.append((texts, labels))
    ids = [id] if len(kept) == 1 else [f"{id}/{number}" for number in range(1, len(kept) + 1)]
    return [record(own, question, *solution, dict(extra)) for own, solution in zip(ids, kept, strict=True)]


def _prm800k_paths(steps: list[Any], options: ReadOptions) -> list[_Path]:
    """The path of chosen completions, then each labelled alternative behind the path that led to it.

    A path that stops at a step of which nothing was chosen is the mere beginning of that step's alternatives,
    and no trajectory of its own. Nothing may follow such a step, for nothing says what would lead to it. What a
    person wrote has no rating. Raises `FormatError`.
    """
    path: _Path = []
    alternatives: list[_Path] = []
    last: int | None = None  # the step of which nothing was chosen
    begins_others = False  # whether the path that ends there is the beginning of its alternatives
    for number, entry in enumerate(steps, 1):
        place = f"step {number}"
        listed = typed(typed(entry, place, dict).get("completions") or [], f"{place}: completions", list)
        completions = [_rated(completion, f"{place}, completion {k}", options) for k, completion in enumerate(listed)]
        chosen, human = entry.get("chosen_completion"), entry.get("human_completion")
        if last is not None and (listed or chosen is not None or human is not None):
            message = f"{place} goes on though nothing was chosen in step {last}; choose there, or remove what follows"
            raise FormatError("nothing chosen", message)
        if chosen is not None:
            chosen = typed(chosen, f"{place}: chosen_completion", int)
            if not 0 <= chosen < len(listed):
                raise FormatError("bad choice", f"{place}: chosen_completion is {chosen} of {len(listed)}; mend it")
        others = [[*path, c] for k, c in enumerate(completions) if k != chosen and c.label is not None]
        alternatives += others
        if chosen is not None:
            path.append(completions[chosen])
        elif human is not None:
            path.append(_Step(_rated(human, f"{place}, human completion", options).text, None))
        elif last is None:
            last, begins_others = number, bool(others)
    return alternatives if begins_others else [path, *alternatives]


def _rated(completion: Any, place: str, options: ReadOptions) -> _Step:
    text = field(typed(completion, place, dict), "text", str, f"{place}: ")
    return _Step(text, options.rating(completion.get("rating"), f"{place}: rating"))


def parse_prm800k(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`question.problem` and `label.steps`: raw PRM800K, with ratings 1, 0, -1; see `_prm800k_paths`."""
    question, label = field(raw, "question", dict), field(raw, "label", dict)
    paths = _prm800k_paths(field(label, "steps", list, "label."), options)
    extra = rest(raw, "question", "label")
    extra |= {"answer": question.get("ground_truth_answer"), "finish_reason": label.get("finish_reason")}
    return _records(id, field(question, "problem", str, "question."), paths, extra)


def parse_math_aps(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`question` and `reasoning_steps`: the prefixes of solutions that a tree search has tried, `solution_prefix` from
    the question on, and the share of continuations that end right, `mc_value`. A step is what a prefix adds, in lines
    of its own, to the longest other one in it; a prefix listed twice has the mean of its values; the question alone is
    no step."""
    question = field(raw, "question", str)
    values: dict[str, list[float]] = {}
    for number, state in enumerate(field(raw, "reasoning_steps", list), 1):
        place = f"reasoning step {number}"
        prefix, value = _state(state, place, options)
        values.setdefault(_solution(prefix, question, place), []).extend(value)
    values.pop("", None)
    if not values:
        raise FormatError("no steps", "no reasoning step goes beyond the question; give one or remove the record")
    extra = rest(raw, "question", "reasoning_steps", "question_id", "final_answer") | {
        "answer": raw.get("final_answer")
    }
    return _records(explicit_id(raw, "question_id") or id, question, _prefix_paths(values), extra)


def _state(state: Any, place: str, options: ReadOptions) -> tuple[str, list[float]]:
    """The prefix and its value, if it has one. Raises `FormatError`."""
    prefix = field(typed(state, place, dict), "solution_prefix", str, f"{place}: ")
    value = options.label(state.get("mc_value"), f"{place}: mc_value")
    if value is None:
        return prefix, []
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        message = f"{place}: mc_value is {show(value)}; it must be a number from 0 to 1, or null"
        raise FormatError("bad label", message)
    return prefix, [float(value)]


def _prefix_paths(values: dict[str, list[float]]) -> list[_Path]:
    """The path to each prefix that no other continues, in the order in which they are listed."""
    parents: dict[str, str | None] = {}
    inside: list[str] = []  # the prefixes of the one before, shortest first: sorted, they follow each other
    for prefix in sorted(values):
        while inside and not prefix.startswith(inside[-1]):
            inside.pop()
        parents[prefix] = next((p for p in reversed(inside) if _LINE_BREAK.match(prefix, len(p))), None)
        inside.append(prefix)
    continued = set(parents.values())
    paths = []
    for leaf in values:
        if leaf in continued:
            continue
        path: _Path = []
        end: str | None = leaf
        while end is not None:
            parent, known = parents[end], values[end]
            path.append(_Step(end[len(parent or "") :].strip(), sum(known) / len(known) if known else None))
            end = parent
        paths.append(path[::-1])
    return paths


def _solution(prefix: str, question: str, place: str) -> str:
    """What a prefix has after the question, whose blanks may be other ones. Raises `FormatError`."""
    sought, found = "".join(question.split()), 0
    end = 0
    while found < len(sought) and end < len(prefix):
        if prefix[end] == sought[found]:
            found += 1
        elif not prefix[end].isspace():
            break
        end += 1
    after = prefix[end:]
    if found < len(sought) or (after and not after[0].isspace()):
        message = f"{place}: solution_prefix {show(prefix)} does not begin with the question; put it before the steps"
        raise FormatError("no question", message)
    return after.strip()
