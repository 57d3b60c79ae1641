"""Formats with a list of steps and a label for each: TRL's stepwise type, RLHFlow, PRMBench, VersaPRM."""

import ast
import itertools
import re
from typing import Any

from pqm_fast.data.checks import FormatError, at, explicit_id, field, record, rest, show, typed
from pqm_fast.data.formats.marked import first_steps, likeliest
from pqm_fast.data.formats.options import ReadOptions
from pqm_fast.data.formats.pools import without_empty
from pqm_fast.data.records import Record


def parse_trl(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`prompt`, `completions` (or `steps`), `labels` (may be absent): TRL's stepwise type, and what `score` writes."""
    name = "steps" if raw.get("completions") is None and raw.get("steps") is not None else "completions"
    prompt, steps = field(raw, "prompt", str), field(raw, name, list)
    labels = options.labels(raw.get("labels"), "label")
    return [record(id, prompt, steps, labels, rest(raw, "prompt", name, "labels"))]


def parse_rlhflow(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`conversations`: each turn of the user is a step, answered + or -; the first turn begins with the question."""
    turns = [
        (field(typed(turn, f"turn {k}", dict), "role", str, f"turn {k}: "), field(turn, "content", str, f"turn {k}: "))
        for k, turn in enumerate(field(raw, "conversations", list), 1)
    ]
    for number, (role, _) in enumerate(turns, 1):
        if role != (expected := "user" if number % 2 else "assistant"):
            raise FormatError(
                "turns out of order", f"turn {number} is by {show(role)} instead of {expected}; correct it"
            )
    if not turns:
        raise FormatError("no steps", "there are no turns; give at least one or remove the record")
    question, first = _question_and_step(turns[0][1])
    steps = [first, *(content.strip() for _, content in turns[2::2])]
    labels: list[Any] = [_sign(content, f"turn {k}", options) for k, (_, content) in enumerate(turns, 1) if k % 2 == 0]
    labels += [None] * (len(steps) - len(labels))  # the last step may have no answer
    return [record(id, question, steps, labels, rest(raw, "conversations"))]


def _question_and_step(text: str) -> tuple[str, str]:
    """The first turn, split at its likeliest "Step 1:", otherwise at its only blank line or at its only line break."""
    if begins := first_steps(text):
        begin = likeliest(begins, text)
        return text[:begin].strip(), text[begin:].strip()
    for between in (r"\n\s*\n", r"\n"):
        if len(parts := re.split(between, text.strip())) == 2:
            return parts[0].strip(), parts[1].strip()
    raise FormatError(
        "no first step",
        f'nothing shows where the question ends in the first turn {show(text)}; begin the step with "Step 1:", '
        "or put one blank line before it",
    )


def _sign(content: str, name: str, options: ReadOptions) -> float | None:
    if options.label_map is not None:
        return options.label(content, name)
    if content.strip() not in ("+", "-"):
        raise FormatError("bad label", f"{name} is {show(content)}; an answer must be + or -")
    return float(content.strip() == "+")


def parse_prmbench(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`modified_question`, `modified_process`, and `error_steps`: the numbers of the wrong steps, from 1 ([]: none).
    `classification` is the type of the error."""
    steps = field(raw, "modified_process", list)
    wrong = {typed(k, "an entry of error_steps", int) for k in field(raw, "error_steps", list)}
    if beyond := sorted(k for k in wrong if not 1 <= k <= len(steps)):
        raise FormatError(
            "bad label", f"error_steps holds {beyond[0]} of {len(steps)} steps, counted from 1; correct it"
        )
    question = next((q for q in ("modified_question", "question", "original_question") if raw.get(q) is not None), "")
    labels = [float(k not in wrong) for k in range(1, len(steps) + 1)]
    extra = rest(raw, question, "modified_process", "error_steps", "idx", "classification")
    kind = extra["error_type"] = raw.get("classification")
    id = explicit_id(raw, "idx") or id
    if isinstance(kind, str) and not id.startswith(kind):
        id = f"{id}/{kind}"  # a solution is listed once for each type of error
    prompt = field(raw, question or "modified_question", str)
    return [record(id, prompt, steps, labels, extra)]


def parse_versaprm(raw: dict[str, Any], id: str, options: ReadOptions) -> list[Record]:
    """`question`, `chain_of_thoughts` (the steps of a solution) and `labels` 1, 0, -1, both as lists or as the text of
    lists; or `chain_of_thoughts` as candidate solutions with `steps`. A question has many rows, with different
    `cot_id`s."""
    question, chain = field(raw, "question", str), _written_list(raw, "chain_of_thoughts")
    if not any(isinstance(solution, dict) for solution in chain):
        chain_id = explicit_id(raw, "cot_id")
        shared = rest(raw, "question", "chain_of_thoughts", "labels", "cot_id")
        return [_chain(f"{id}/{chain_id}" if chain_id else id, id, question, {**raw, "steps": chain}, shared, options)]
    shared = rest(raw, "question", "chain_of_thoughts")
    records = []
    for number, solution in enumerate(chain, 1):
        name = f"solution {number}"
        extra = {**rest(typed(solution, name, dict), "steps", "labels", "prm_reward"), **shared}
        with at(name):
            field(solution, "steps", list)
            records.append(_chain(f"{id}/{number}", id, question, solution, extra, options))
    return records


def _chain(
    id: str, question_id: str, question: str, solution: dict[str, Any], extra: dict[str, Any], options: ReadOptions
) -> Record:
    labels: list[Any] | None = None
    if solution.get("labels") is not None:
        labels = [options.rating(v, f"label {k}") for k, v in enumerate(_written_list(solution, "labels"), 1)]
    extra |= {"question_id": question_id, "correct": _verdict(extra.pop("parsed_answer_correctness", None))}
    if solution.get("prm_reward") is not None:
        extra["scores"] = solution["prm_reward"]
    return record(id, question, *without_empty(solution["steps"], labels, extra), extra)


def _verdict(value: Any) -> Any:
    """Whether an answer is right; "true" and "false" as text become booleans. Raises `FormatError`."""
    verdict = {"true": True, "false": False}.get(value.strip().lower(), value) if isinstance(value, str) else value
    if verdict is None or (isinstance(verdict, (bool, int, float)) and 0 <= verdict <= 1):
        return verdict
    raise FormatError("bad label", f"parsed_answer_correctness is {show(value)}; give true, false or null")


def _written_list(raw: dict[str, Any], name: str) -> list[Any]:
    """A list, or the list that Python prints as this text. Raises `FormatError`."""
    value = raw.get(name)
    if isinstance(value, str):
        try:
            value = ast.literal_eval(list_text := value.strip())
            if _texts_without_comma(list_text):
                raise SyntaxError("two texts with no comma between them")
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else type(error).__name__
            message = f"{name} is {show(raw[name])}, which is not a list ({reason}); write a JSON list"
            raise FormatError("wrong type", message) from None
        return typed(value, name, list)
    return field(raw, name, list)


_TEXT = re.compile(r"""'[^'\\]*(?:\\.[^'\\]*)*'|"[^"\\]*(?:\\.[^"\\]*)*\"""", re.DOTALL)


def _texts_without_comma(list_text: str) -> bool:
    """Whether two texts in well-formed `written` follow each other without a comma, as NumPy prints arrays: Python
    would join them into one."""
    spans = [match.span() for match in _TEXT.finditer(list_text)]
    return any(not set(list_text[end:begin]) & set(",:()[]{}") for (_, end), (begin, _) in itertools.pairwise(spans))
