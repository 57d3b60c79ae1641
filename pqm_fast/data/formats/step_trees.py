"""Formats with trees of steps, in which solutions of a question share their first steps: PRM800K and MATH-APS.

A record is a path through the tree. A label is in one record only, the first that has its step: a step that five
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
    """A record per path. A step that an earlier path has after the same steps is repeated without its label. A later
    path that adds no label does not become a record: it is the same alternative, listed twice."""
    labelled: dict[tuple[str, ...], float] = {}
    solutions: list[tuple[list[str], list[float | None]]] = []
    for path in paths:
        texts, labels = [step.text for step in path], []
        for depth, step in enumerate(path, 1):
            node = tuple(texts[:depth])
            labels.append(None if node in labelled else step.label)
            if step.label is not None and labelled.setdefault(node, step.label) != step.label:
                conflict = f"step {depth} {show(step.text)} has the labels {labelled[node]} and {step.label}"
                raise FormatError("two labels", f"{conflict} behind the same steps; give it one")
        if not solutions or any(label is not None for label in labels):
            solutions.append((texts, labels))
    ids = [id] if len(solutions) == 1 else [f"{id}/{number}" for number in range(1, len(solutions) + 1)]
    return [record(path_id, question, *solution, dict(extra)) for path_id, solution in zip(ids, solutions, strict=True)]


def _prm800k_paths(steps: list[Any], options: ReadOptions) -> list[_Path]:
    """The path of chosen completions, then each labelled alternative after the path that led to it.

    A path that ends at a step where nothing was chosen is only the beginning of that step's alternatives, not a
    trajectory. Nothing may follow such a step, because nothing says what would lead to it. A step that a person wrote
    has no rating. Raises `FormatError`.
    """
    path: _Path = []
    alternatives: list[_Path] = []
    unchosen_step: int | None = None  # the number of the step where nothing was chosen
    has_alternatives = False  # whether that step has labelled alternatives
    for number, entry in enumerate(steps, 1):
        name = f"step {number}"
        entries = typed(typed(entry, name, dict).get("completions") or [], f"{name}: completions", list)
        completions = [_rated(completion, f"{name}, completion {k}", options) for k, completion in enumerate(entries)]
        chosen, human = entry.get("chosen_completion"), entry.get("human_completion")
        if unchosen_step is not None and (entries or chosen is not None or human is not None):
            problem = f"{name} continues although nothing was chosen in step {unchosen_step}"
            raise FormatError("nothing chosen", f"{problem}; choose there, or remove the rest")
        if chosen is not None:
            chosen = typed(chosen, f"{name}: chosen_completion", int)
            if not 0 <= chosen < len(entries):
                raise FormatError("bad choice", f"{name}: chosen_completion is {chosen} of {len(entries)}; correct it")
        new_alternatives = [[*path, c] for k, c in enumerate(completions) if k != chosen and c.label is not None]
        alternatives += new_alternatives
        if chosen is not None:
            path.append(completions[chosen])
        elif human is not None:
            path.append(_Step(_rated(human, f"{name}, human completion", options).text, None))
        elif unchosen_step is None:
            unchosen_step, has_alternatives = number, bool(new_alternatives)
    return alternatives if has_alternatives else [path, *alternatives]


def _rated(completion: Any, name: str, options: ReadOptions) -> _Step:
    text = field(typed(completion, name, dict), "text", str, f"{name}: ")
    return _Step(text, options.rating(completion.get("rating"), f"{name}: rating"))


def parse_prm800k(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`question.problem` and `label.steps`: raw PRM800K, with ratings 1, 0, -1; see `_prm800k_paths`."""
    question, label = field(raw, "question", dict), field(raw, "label", dict)
    paths = _prm800k_paths(field(label, "steps", list, "label."), options)
    extra = rest(raw, "question", "label")
    extra |= {"answer": question.get("ground_truth_answer"), "finish_reason": label.get("finish_reason")}
    return _records(id, field(question, "problem", str, "question."), paths, extra)


def parse_math_aps(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`question` and `reasoning_steps`: prefixes of solutions that a tree search tried (`solution_prefix`, which begins
    with the question), each with the share of continuations that end right (`mc_value`). A step is the whole lines that
    a prefix adds to the longest other prefix in it. A prefix listed twice has the mean of its values. The question
    alone is not a step."""
    question = field(raw, "question", str)
    values: dict[str, list[float]] = {}
    for number, state in enumerate(field(raw, "reasoning_steps", list), 1):
        name = f"reasoning step {number}"
        prefix, value = _prefix_and_value(state, name, options)
        values.setdefault(_solution(prefix, question, name), []).extend(value)
    values.pop("", None)
    if not values:
        raise FormatError("no steps", "no reasoning step goes beyond the question; give one or remove the record")
    extra = rest(raw, "question", "reasoning_steps", "question_id", "final_answer") | {
        "answer": raw.get("final_answer")
    }
    return _records(explicit_id(raw, "question_id") or id, question, _prefix_paths(values), extra)


def _prefix_and_value(state: Any, name: str, options: ReadOptions) -> tuple[str, list[float]]:
    """The prefix and [its value], or [] if it has none. Raises `FormatError`."""
    prefix = field(typed(state, name, dict), "solution_prefix", str, f"{name}: ")
    value = options.label(state.get("mc_value"), f"{name}: mc_value")
    if value is None:
        return prefix, []
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        message = f"{name}: mc_value is {show(value)}; it must be a number from 0 to 1, or null"
        raise FormatError("bad label", message)
    return prefix, [float(value)]


def _prefix_paths(values: dict[str, list[float]]) -> list[_Path]:
    """The path to each prefix that no other prefix continues, in the order of the list."""
    parents: dict[str, str | None] = {}
    ancestors: list[str] = []  # the prefixes of the last prefix, shortest first: sorting puts them before it
    for prefix in sorted(values):
        while ancestors and not prefix.startswith(ancestors[-1]):
            ancestors.pop()
        parents[prefix] = next((p for p in reversed(ancestors) if _LINE_BREAK.match(prefix, len(p))), None)
        ancestors.append(prefix)
    continued = set(parents.values())
    paths = []
    for leaf in values:
        if leaf in continued:
            continue
        path: _Path = []
        end: str | None = leaf
        while end is not None:
            parent, end_values = parents[end], values[end]
            mean = sum(end_values) / len(end_values) if end_values else None
            path.append(_Step(end[len(parent or "") :].strip(), mean))
            end = parent
        paths.append(path[::-1])
    return paths


def _solution(prefix: str, question: str, name: str) -> str:
    """The text of a prefix after the question, whose white space may differ. Raises `FormatError`."""
    sought, matched = "".join(question.split()), 0
    end = 0
    while matched < len(sought) and end < len(prefix):
        if prefix[end] == sought[matched]:
            matched += 1
        elif not prefix[end].isspace():
            break
        end += 1
    solution = prefix[end:]
    if matched < len(sought) or (solution and not solution[0].isspace()):
        message = f"{name}: solution_prefix {show(prefix)} does not begin with the question; put it before the steps"
        raise FormatError("no question", message)
    return solution.strip()
