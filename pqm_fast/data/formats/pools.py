"""Candidate solutions of one question in one record, for Best-of-N: our own pools, and those of search-and-learn."""

from typing import Any

from pqm_fast.data.checks import FormatError, at, candidate, explicit_id, field, record, rest, typed
from pqm_fast.data.formats.options import ReadOptions
from pqm_fast.data.records import Record


def _lines(text: str) -> list[str]:
    # not splitlines: it would also cut at characters that occur inside a line
    return [line.strip() for line in text.split("\n") if line.strip()]


def parse_pool(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`question`, `responses`: solutions as `text` (a step a line) or `steps`, maybe `labels`; one record each."""
    question = field(raw, "question", str)
    question_id = explicit_id(raw, "question_id") or id
    shared = rest(raw, "question", "responses", "question_id")
    records = []
    for k, response in enumerate(field(raw, "responses", list), 1):
        place = f"response {k}"
        steps = typed(response, place, dict).get("steps")
        if steps is None:
            steps = _lines(field(response, "text", str, f"{place}: "))
        # the question's fields last: its `answer` is the right one, a response's was extracted from its text
        extra = {**rest(response, "text", "steps", "labels", "model_name"), **shared, "question_id": question_id}
        if response.get("model_name") is not None:
            extra["policy"] = response["model_name"]
        with at(place):
            labels = options.labels(response.get("labels"), "label")
            solution = candidate(typed(steps, "steps", list), labels, extra)
            records.append(record(f"{question_id}/{k}", question, *solution, extra))
    if not records:
        raise FormatError("no steps", "responses is an empty list; give at least one or remove the record")
    return records


# lists with an entry per completion
_OF_COMPLETIONS = ("scores", "agg_scores", "completion_tokens", "preds")


def parse_search_and_learn(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`problem` (or `question`), `completions`: candidate solutions as text, whose steps stand between blank lines;
    `scores` if there are any: a list per completion, one score per step. The reward models of search-and-learn cut at
    blank lines or at every line: which it was shows in the number of scores."""
    name = "question" if raw.get("problem") is None else "problem"
    question, completions = field(raw, name, str), field(raw, "completions", list)
    question_id = explicit_id(raw, "unique_id") or id
    columns = {key: typed(raw[key], key, list) for key in _OF_COMPLETIONS if raw.get(key) is not None}
    for key, column in columns.items():
        if len(column) != len(completions):
            message = f"{key} has {len(column)} entries for {len(completions)} completions; give one for each"
            raise FormatError("lists of different length", message)
    shared = rest(raw, name, "completions", "unique_id", *columns)
    records = []
    for k, text in enumerate(completions):
        place = f"completion {k + 1}"
        extra = {**shared, **{key: column[k] for key, column in columns.items()}, "question_id": question_id}
        solution = candidate(_steps(typed(text, place, str), extra, f"scores of {place}"), None, extra)
        with at(place):
            records.append(record(f"{question_id}/{k + 1}", question, *solution, extra))
    if not records:
        raise FormatError("no steps", "completions is an empty list; give at least one or remove the record")
    return records


def _steps(text: str, extra: dict[str, Any], place: str) -> list[str]:
    """The steps of a completion; scores of the blank parts that its reward model saw too go from `extra`."""
    parts = text.split("\n\n")
    paragraphs = [part.strip() for part in parts if part.strip()]
    if extra.get("scores") is not None:
        scores = typed(extra["scores"], place, list)
        if len(scores) == len(parts):
            extra["scores"] = [score for score, part in zip(scores, parts, strict=True) if part.strip()]
        elif len(scores) != len(paragraphs) and len(scores) == len(_lines(text)):
            return _lines(text)
    return paragraphs
