"""Chooses the scored solutions for a page: those where the model was most wrong, and a random sample of the others."""

import heapq
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pqm_fast.data.candidate import correctness, stated_fields
from pqm_fast.data.read import read_records
from pqm_fast.data.records import Record
from pqm_fast.report.runs import Run
from pqm_fast.scoring.stored import Scores, scores_of


def choose_solutions(runs: Sequence[Run], limit: int, seed: int = 0) -> dict[str, Any]:
    """At most `limit` solutions, JSON-ready, without copies (same policy, question, steps, labels and correctness).

    Every run gets the same share. If a run has more, half of its solutions are the most wrong ones (`how_wrong`), and
    the others are a random sample of the rest.

    Returns:
        `prompts`: the questions, each once. `items`: {run (index), id, prompt (index in `prompts`), steps, labels (or
        null), q, wrong (or null), at (the step, or null), copies} and, where known, policy, correct and answer.
        `total`: number of records. `distinct`: number of solutions without copies. `worst`: number of items that were
        chosen as most wrong, None if all solutions are shown.

    Raises:
        PQMError: a record does not have one score (a finite number, or null) for each step.
    """
    scored = [(i, run.scored) for i, run in enumerate(runs) if run.scored]
    prompts: dict[str, int] = {}
    items: list[dict[str, Any]] = []
    total = distinct = num_worst = 0
    for i, paths in scored:
        copies, top, sample = _select(paths, limit // len(scored), seed)
        total, distinct, num_worst = total + sum(copies.values()), distinct + len(copies), num_worst + len(top)
        unread_keys = top | sample
        for record, scores in _read(paths):
            if (key := _key(record)) in unread_keys:
                unread_keys.remove(key)
                prompt = prompts.setdefault(record.prompt, len(prompts))
                items.append({"run": i, "prompt": prompt, **_item(record, scores), "copies": copies[key]})
    counts = {"total": total, "distinct": distinct, "worst": num_worst if len(items) < distinct else None}
    return {"prompts": list(prompts), "items": items, **counts}


def _select(paths: Sequence[Path], limit: int, seed: int) -> tuple[Counter[int], set[int], set[int]]:
    """(how often each key occurs, keys chosen as most wrong, keys chosen at random).

    This first reading of the files keeps no more than two numbers for each solution in memory.
    """
    copies: Counter[int] = Counter()
    wrong: dict[int, float] = {}
    for record, scores in _read(paths):
        key = _key(record)
        copies[key] += 1
        if copies[key] == 1 and (value := how_wrong(record, scores)[0]) is not None:
            wrong[key] = value
    if len(copies) <= limit:
        return copies, set(), set(copies)
    top = set(heapq.nlargest(limit // 2, wrong, key=wrong.__getitem__))
    other_keys = [key for key in copies if key not in top]
    return copies, top, set(random.Random(seed).sample(other_keys, limit - len(top)))


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
        "q": [None if q is None else round(q, 4) for q in scores],
        "wrong": wrong,
        "at": step,
    }
    return item | stated_fields(record)
