"""Formats with all candidate solutions of a question in one record, for Best-of-N: pools, and search-and-learn."""

from typing import Any

from pqm_fast.data.checks import FormatError, at, explicit_id, field, record, rest, typed
from pqm_fast.data.formats.options import ReadOptions
from pqm_fast.data.records import EMPTY_STEP, Record


def without_empty(steps: list[Any], labels: Any, extra: dict[str, Any]) -> tuple[list[Any], Any]:
    """Steps and labels of a candidate; for an empty candidate, one step `EMPTY_STEP` without a label.

    An empty candidate is a failed attempt; as an error it would remove the whole question. If `extra` has an empty list
    of scores for it, its score becomes null.
    """
    if any(not isinstance(step, str) or step.strip() for step in steps):
        return steps, labels
    if extra.get("scores") == []:
        extra["scores"] = [None]
    return [EMPTY_STEP], None if labels == [] else labels


def _lines(text: str) -> list[str]:
    # not splitlines: it would also cut at characters that occur inside a line
    return [line.strip() for line in text.split("\n") if line.strip()]


def parse_pool(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`question`, `responses`: solutions as `text` (one step per line) or `steps`, perhaps with `labels`; one record
    each."""
    question = field(raw, "question", str)
    question_id = explicit_id(raw, "question_id") or id
    shared = rest(raw, "question", "responses", "question_id")
    records = []
    for k, response in enumerate(field(raw, "responses", list), 1):
        name = f"response {k}"
        steps = typed(response, name, dict).get("steps")
        if steps is None:
            steps = _lines(field(response, "text", str, f"{name}: "))
        # the question's `answer` is the right one, so its fields come last; a response's was extracted from its text
        extra = {**rest(response, "text", "steps", "labels", "model_name"), **shared, "question_id": question_id}
        if response.get("model_name") is not None:
            extra["policy"] = response["model_name"]
        with at(name):
            labels = options.labels(response.get("labels"), "label")
            solution = without_empty(typed(steps, "steps", list), labels, extra)
            records.append(record(f"{question_id}/{k}", question, *solution, extra))
    if not records:
        raise FormatError("no steps", "responses is an empty list; give at least one or remove the record")
    return records


# lists with one entry per completion
_PER_COMPLETION = ("scores", "agg_scores", "completion_tokens", "preds")


def parse_search_and_learn(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`problem` (or `question`), `completions`: candidate solutions as text, with blank lines between the steps;
    `scores`, optional: a list per completion with one score per step. The reward models of search-and-learn split at
    blank lines or at every line; the number of scores shows which."""
    question_field = "question" if raw.get("problem") is None else "problem"
    question, completions = field(raw, question_field, str), field(raw, "completions", list)
    question_id = explicit_id(raw, "unique_id") or id
    columns = {key: typed(raw[key], key, list) for key in _PER_COMPLETION if raw.get(key) is not None}
    for key, column in columns.items():
        if len(column) != len(completions):
            message = f"{key} has {len(column)} entries for {len(completions)} completions; give one for each"
            raise FormatError("lists of different length", message)
    shared = rest(raw, question_field, "completions", "unique_id", *columns)
    records = []
    for k, text in enumerate(completions):
        name = f"completion {k + 1}"
        extra = {**shared, **{key: column[k] for key, column in columns.items()}, "question_id": question_id}
        solution = without_empty(_steps(typed(text, name, str), extra, f"scores of {name}"), None, extra)
        with at(name):
            records.append(record(f"{question_id}/{k + 1}", question, *solution, extra))
    if not records:
        raise FormatError("no steps", "completions is an empty list; give at least one or remove the record")
    return records


def _steps(text: str, extra: dict[str, Any], name: str) -> list[str]:
    """The steps of a completion. Scores that a reward model gave to blank parts are removed from `extra`; messages call
    the scores `name`."""
    parts = text.split("\n\n")
    paragraphs = [part.strip() for part in parts if part.strip()]
    if extra.get("scores") is not None:
        scores = typed(extra["scores"], name, list)
        if len(scores) == len(parts):
            extra["scores"] = [score for score, part in zip(scores, parts, strict=True) if part.strip()]
        elif len(scores) != len(paragraphs) and len(scores) == len(_lines(text)):
            return _lines(text)
    return paragraphs
