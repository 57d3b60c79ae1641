"""Chooses the scored solutions for a page: those where the model was most wrong, and a random sample of the others."""

import heapq
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern
from typing import Any

from pqm_fast.data.candidate import correctness, stated_fields
from pqm_fast.data.read import read_records
from pqm_fast.data.records import Record, first_wrong
from pqm_fast.evaluate.error_types import type_of
from pqm_fast.evaluate.positions import position_bin
from pqm_fast.report.first_errors import FirstError, FirstErrors
from pqm_fast.report.runs import Run
from pqm_fast.report.text import bin_text
from pqm_fast.scoring.stored import Scores, scores_of


def choose_solutions(runs: Sequence[Run], limit: int, seed: int = 0, by: str = "error_type") -> dict[str, Any]:
    """At most `limit` solutions, JSON-ready, without copies (same policy, question, steps, labels and correctness).

    Every run gets the same share. If a run has more, half of its solutions are the most wrong ones (`how_wrong`), and
    the others are a random sample of the rest: as many of each type, by the field `by`, as there are, most wrong ones
    included, so that no type is left out where there is room for all.

    Returns:
        `prompts`: the questions, each once. `items`: {run (index), id, prompt (index in `prompts`), steps, labels (or
        null), q ({run: its Q-values}, of every run that scored the solution), wrong (or null), at (the step, or null),
        copies} and, where known, policy, correct, answer, type (by `by`), position (the first wrong step: its bin as
        text, or `none`) and first ({run: its `FirstError`}). `by`: the field. `total`: number of records. `distinct`:
        number of solutions without copies. `worst`: number of items that were chosen as most wrong, None if all
        solutions are shown.

    Raises:
        PQMError: a record does not have one score (a finite number, or null) for each step.
    """
    readings = {i: _read_once(run.scored, by) for i, run in enumerate(runs) if run.scored}
    selected = {i: _select(reading, limit // len(readings), seed) for i, reading in readings.items()}
    chosen = {i: top | sample for i, (top, sample) in selected.items()}
    shown = set().union(*chosen.values())
    prompts: dict[str, int] = {}
    items: dict[tuple[int, int], dict[str, Any]] = {}  # by run and key
    q_of: dict[int, dict[int, list[float | None]]] = defaultdict(dict)  # by key and run
    for i, reading in readings.items():
        for record, scores in _read(runs[i].scored):
            key = _key(record)
            if key not in shown or i in q_of[key]:
                continue
            q_of[key][i] = [None if q is None else round(q, 4) for q in scores]
            if key in chosen[i]:
                prompt = prompts.setdefault(record.prompt, len(prompts))
                items[i, key] = {"run": i, "prompt": prompt, **_item(record, scores), "copies": reading.copies[key]}
                if key in reading.types:
                    items[i, key]["type"] = reading.types[key]
    for (_, key), item in items.items():
        item["q"] = q_of[key]
        if first := {j: reading.first_errors[key] for j, reading in readings.items() if key in reading.first_errors}:
            item["first"] = first
    total = sum(sum(reading.copies.values()) for reading in readings.values())
    distinct = sum(len(reading.copies) for reading in readings.values())
    worst = sum(len(top) for top, _ in selected.values()) if len(items) < distinct else None
    counts = {"total": total, "distinct": distinct, "worst": worst}
    return {"prompts": list(prompts), "items": list(items.values()), "by": by, **counts}


@dataclass(slots=True)
class _Reading:
    """What the first reading of a run's files keeps of each solution, by its key: numbers, and no text of its own."""

    copies: Counter[int] = field(default_factory=Counter)
    wrong: dict[int, float] = field(default_factory=dict)
    types: dict[int, str] = field(default_factory=dict)
    first_errors: dict[int, FirstError] = field(default_factory=dict)


def _read_once(paths: Sequence[Path], by: str) -> _Reading:
    reading = _Reading()
    for path in paths:
        first_errors = FirstErrors()  # each file for itself: a threshold belongs to one set of data
        for record, scores in _read([path]):
            key = _key(record)
            first_errors.add(key, record, scores)
            reading.copies[key] += 1
            if reading.copies[key] > 1:
                continue
            if (value := how_wrong(record, scores)[0]) is not None:
                reading.wrong[key] = value
            if (kind := type_of(record, by)) is not None:
                reading.types[key] = intern(kind)
        reading.first_errors = first_errors.outcomes() | reading.first_errors
    return reading


def _select(reading: _Reading, limit: int, seed: int) -> tuple[set[int], set[int]]:
    """(keys chosen as most wrong, keys chosen at random)."""
    if len(reading.copies) <= limit:
        return set(), set(reading.copies)
    top = set(heapq.nlargest(limit // 2, reading.wrong, key=reading.wrong.__getitem__))
    others: dict[str, list[int]] = defaultdict(list)
    for key in reading.copies:
        if key not in top:
            others[reading.types.get(key, "")].append(key)
    shown = Counter(reading.types.get(key, "") for key in top)
    rng, fewest = random.Random(seed), [(shown[kind], kind) for kind in others]
    for keys in others.values():
        rng.shuffle(keys)
    heapq.heapify(fewest)
    sample: set[int] = set()
    while len(top) + len(sample) < limit:
        count, kind = heapq.heappop(fewest)
        sample.add(others[kind].pop())
        if others[kind]:
            heapq.heappush(fewest, (count + 1, kind))
    return top, sample


def _key(record: Record) -> int:
    stated = stated_fields(record)
    fields = [repr(stated.get(name)) for name in ("policy", "correct")]  # true is not 1 here, and "1" is not 1
    return hash((record.prompt, tuple(record.steps), tuple(record.labels or ()), *fields))


def how_wrong(record: Record, scores: Scores) -> tuple[float | None, int | None]:
    """(how wrong the model was about a solution, from 0 to 1; the step, from 0, where it was).

    That is the largest |sigmoid(q) - label| over the steps that have both. If no step has both, it is
    |sigmoid(q) - correct| of the step with the lowest q, because one wrong step makes a solution wrong. (None, None)
    without labels and `correct`.
    """
    labels = record.labels or [None] * len(scores)
    gaps = [
        (abs(_sigmoid(q) - y), t)
        for t, (q, y) in enumerate(zip(scores, labels, strict=True))
        if q is not None and y is not None
    ]
    if gaps:
        return max(gaps, key=lambda gap: gap[0])
    scored_steps = [(q, t) for t, q in enumerate(scores) if q is not None]
    correct = correctness(record)
    if not scored_steps or correct is None:
        return None, None
    lowest, step = min(scored_steps)
    return abs(_sigmoid(lowest) - correct), step


def _sigmoid(q: float) -> float:
    return 1 / (1 + math.exp(-q)) if q >= 0 else math.exp(q) / (1 + math.exp(q))


def _read(paths: Sequence[Path]) -> Iterator[tuple[Record, Scores]]:
    for path in paths:
        for record in read_records(path):
            yield record, scores_of(record, str(path))


def _item(record: Record, scores: Scores) -> dict[str, Any]:
    wrong, step = how_wrong(record, scores)
    item: dict[str, Any] = {
        "id": record.id,
        "steps": record.steps,
        "labels": record.labels,
        "wrong": wrong,
        "at": step,
    }
    if record.labels is not None and any(y is not None for y in record.labels):
        item["position"] = _error_position(record.labels)
    return item | stated_fields(record)


def _error_position(labels: Sequence[float | None]) -> str:
    """The bin of the first wrong step; `none` where no step is labelled wrong."""
    wrong = first_wrong(labels)
    return "none" if wrong < 0 else bin_text(*position_bin(wrong + 1))
