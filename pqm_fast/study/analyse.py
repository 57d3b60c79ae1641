"""From the trials' files to the figures of each point of the grid."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pqm_fast.errors import PQMError
from pqm_fast.evaluate.answers import answer_of, group_answers
from pqm_fast.evaluate.best_of_n import mean_accuracy, pass_at_n
from pqm_fast.evaluate.vote import majority_vote
from pqm_fast.study.config import StudyConfig
from pqm_fast.study.grid import Cell, Trial
from pqm_fast.study.interval import interval
from pqm_fast.study.pools import Pool
from pqm_fast.study.tables import STEP_COLUMNS

Result = Mapping[str, Any]
STEP_FIGURES = tuple(STEP_COLUMNS)


def read_result(path: Path) -> Result:
    """A trial's file; PQMError if it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PQMError(f"{path}: damaged ({error}); delete it, and the trial is done again") from error
    return dict(found)


def chosen(results: Mapping[float, Result]) -> tuple[float, str] | None:
    """(rate, aggregator) with the best Best-of-N on the tuning pool; None if every rate diverged.

    Of equals the lower rate, and the aggregator that was named first.
    """
    options = [
        (figure, -rate, rate, how)
        for rate, result in results.items()
        if result["diverged"] is None
        for how, figure in result["tuning"].items()
    ]
    if not options:
        return None
    best = max(figure for figure, *_ in options)
    _, _, rate, how = max((option for option in options if option[0] == best), key=lambda option: option[1])
    return rate, how


def analyse(config: StudyConfig, cells: Sequence[Cell], results: Mapping[Trial, Result], test: Pool) -> dict[str, Any]:
    """JSON-ready figures on the test pool.

    Returns:
        `pool`: questions, and for each policy the mean accuracy, majority vote and pass@N of its candidates. `cells`:
        one entry each: the cell, `tuning` {rate: best figure on the tuning pool, None if diverged}, the `learning_rate`
        and `aggregate` chosen, `best_of_n`, `by_policy`, `against` (the difference from the baseline loss on the same
        model and labels, seed by seed and question by question; None for the baseline itself), each {mean, low, high};
        `by_aggregator`, `curve` and `steps`: means over seeds; `diverged`: how many of the seeds. All but `tuning` are
        absent where every rate diverged.
    """
    values: dict[Cell, np.ndarray] = {}
    entries = []
    for cell in cells:
        first = {rate: results[Trial(cell, rate, config.seeds[0])] for rate in config.learning_rates}
        tuning = {f"{rate:g}": None if r["diverged"] else max(r["tuning"].values()) for rate, r in first.items()}
        entry: dict[str, Any] = {**asdict(cell), "tuning": tuning}
        entries.append(entry)
        choice = chosen(first)
        if choice is None:
            continue
        rate, how = choice
        seeds = {seed: results[Trial(cell, rate, seed)] for seed in config.seeds}
        finished = [result for result in seeds.values() if result["diverged"] is None]
        # [seeds, policies, questions]
        picked = np.array([result["test"][how] for result in finished], dtype=float)
        values[cell] = np.full((len(seeds), picked.shape[2]), np.nan)
        values[cell][[result["diverged"] is None for result in seeds.values()]] = np.nanmean(picked, axis=1)
        entry |= {
            "learning_rate": rate,
            "aggregate": how,
            "diverged": len(seeds) - len(finished),
            "best_of_n": asdict(interval(np.nanmean(picked, axis=1), lowest=0.0)),
            "by_policy": {
                policy: asdict(interval(picked[:, p][:, ~np.isnan(picked[0, p])], lowest=0.0))
                for p, policy in enumerate(test.members)
            },
            "by_aggregator": {
                name: _average([result["curve"][name][str(config.n)] for result in finished])
                for name in finished[0]["curve"]
            },
            "curve": {n: _average([r["curve"][how][n] for r in finished]) for n in finished[0]["curve"][how]},
            "steps": _steps(finished),
        }
    for cell, entry in zip(cells, entries, strict=True):
        if cell in values:
            entry["against"] = _against(values, cell, cell.with_loss(config.baseline, config.zeta))
    return {"pool": _pool(config, test), "cells": entries}


def _against(values: Mapping[Cell, np.ndarray], cell: Cell, baseline: Cell) -> dict[str, Any] | None:
    """Seed s of the one against seed s of the other: they saw the data in the same order."""
    if cell == baseline or baseline not in values:
        return None
    difference = values[cell] - values[baseline]
    difference = difference[~np.isnan(difference).any(axis=1)]
    return asdict(interval(difference)) if len(difference) else None


def _steps(finished: Sequence[Result]) -> dict[str, float] | None:
    if any(result["steps"] is None for result in finished):
        return None
    # trials of before there were calibrated figures have none
    every = {name: [result["steps"].get(name) for result in finished] for name in STEP_FIGURES}
    return {name: _average(own) for name, own in every.items() if None not in own}


def _average(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _pool(config: StudyConfig, test: Pool) -> dict[str, Any]:
    """What no loss decides. Ties of a vote are shared."""
    policies = {}
    for policy, members in test.members.items():
        groups = list(members.values())
        correct = [test.correct[own] for own in groups]
        answers = [[answer_of(test.records[i]) for i in own] for own in groups]
        policies[policy] = {
            "questions": len(groups),
            "mean_accuracy": mean_accuracy(correct).mean,
            "majority_vote": majority_vote([group_answers(own) for own in answers], correct, "share").mean,
            "pass_at_n": pass_at_n(correct, config.n).mean,
        }
    return {"questions": len(test.questions), "n": config.n, "policies": policies}
