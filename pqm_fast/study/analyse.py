"""Computes the figures at each cell of the grid from the results of the trials."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from pqm_fast.evaluate.answers import answer_of, group_answers
from pqm_fast.evaluate.best_of_n import mean_accuracy, pass_at_n
from pqm_fast.evaluate.vote import majority_vote
from pqm_fast.study.choice import choose
from pqm_fast.study.config import StudyConfig
from pqm_fast.study.grid import Cell, Trial, tuning_trials
from pqm_fast.study.interval import interval
from pqm_fast.study.judged_pool import JudgedPool
from pqm_fast.study.trial_result import Result

STEP_FIGURES = {
    "auroc": "AUROC over all steps",
    "pair_accuracy": "pairs in order within a solution",
    "step_accuracy": "step accuracy",
    "step_accuracy_calibrated": "step accuracy, calibrated",
    "balanced_accuracy_calibrated": "balanced, calibrated",
    "first_error_accuracy": "first error",
    "first_error_accuracy_calibrated": "first error, calibrated",
}
"""The step metrics that a study reports: {key in `steps`: heading in tables}."""


def analyse(
    config: StudyConfig, cells: Sequence[Cell], results: Mapping[Trial, Result], test: JudgedPool
) -> dict[str, Any]:
    """JSON-ready figures on the test pool.

    Returns:
        `pool`: number of questions, N, and for each policy the mean accuracy, majority vote and pass@N of its
        candidates. `cells`: an entry for each cell with the cell itself; `tuning`: {rate: best Best-of-N on the tuning
        pool, None if diverged}, for a combination {rate: {weight: the same}}; `learning_rate`, `compare_weight` (None
        for a loss by itself) and `aggregate`: the chosen ones; `best_of_n`, `by_policy` and
        `against` (the difference from the baseline loss on the same model and labels, seed by seed and question by
        question; None for the baseline itself), each as {mean, low, high}; `by_aggregator`, `curve` and `steps`: means
        over seeds; `diverged`: the number of seeds that diverged. Where every trial diverged, `tuning` is the only
        figure.
    """
    values: dict[Cell, np.ndarray] = {}  # [seeds, questions] Best-of-N; NaN for a seed that diverged
    entries = []
    for cell in cells:
        tried = {trial: results[trial] for trial in tuning_trials(config, cell)}
        entry: dict[str, Any] = {**asdict(cell), "tuning": _tuning(tried)}
        entries.append(entry)
        choice = choose(tried)
        if choice is None:
            continue
        chosen, aggregator = choice
        seeds = {seed: results[replace(chosen, seed=seed)] for seed in config.seeds}
        finished = [result for result in seeds.values() if result["diverged"] is None]
        # [seeds, policies, questions]
        best_of_n = np.array([result["test"][aggregator] for result in finished], dtype=float)
        values[cell] = np.full((len(seeds), best_of_n.shape[2]), np.nan)
        values[cell][[result["diverged"] is None for result in seeds.values()]] = np.nanmean(best_of_n, axis=1)
        entry |= {
            "learning_rate": chosen.learning_rate,
            "compare_weight": chosen.compare_weight,
            "aggregate": aggregator,
            "diverged": len(seeds) - len(finished),
            "best_of_n": asdict(interval(np.nanmean(best_of_n, axis=1), lowest=0.0)),
            "by_policy": {
                policy: asdict(interval(best_of_n[:, p][:, ~np.isnan(best_of_n[0, p])], lowest=0.0))
                for p, policy in enumerate(test.members)
            },
            "by_aggregator": {
                name: _average([result["curve"][name][str(config.n)] for result in finished])
                for name in finished[0]["curve"]
            },
            "curve": {
                n: _average([result["curve"][aggregator][n] for result in finished])
                for n in finished[0]["curve"][aggregator]
            },
            "steps": _steps(finished),
        }
    for cell, entry in zip(cells, entries, strict=True):
        if cell in values:
            entry["against"] = _against(values, cell, cell.with_loss(config.baseline, config.zeta))
    return {"pool": _pool(config, test), "cells": entries}


def _tuning(tried: Mapping[Trial, Result]) -> dict[str, Any]:
    """{rate: best Best-of-N on the tuning pool}, or {rate: {weight: the same}}; None where a trial diverged."""
    tuning: dict[str, Any] = {}
    for trial, result in tried.items():
        best = None if result["diverged"] else max(result["tuning"].values())
        rate = f"{trial.learning_rate:g}"
        if trial.compare_weight is None:
            tuning[rate] = best
        else:
            tuning.setdefault(rate, {})[f"{trial.compare_weight:g}"] = best
    return tuning


def _against(values: Mapping[Cell, np.ndarray], cell: Cell, baseline: Cell) -> dict[str, Any] | None:
    """The difference seed by seed: trials with the same seed saw the data in the same order."""
    if cell == baseline or baseline not in values:
        return None
    difference = values[cell] - values[baseline]
    difference = difference[~np.isnan(difference).any(axis=1)]
    return asdict(interval(difference)) if len(difference) else None


def _steps(finished: Sequence[Result]) -> dict[str, float] | None:
    if any(result["steps"] is None for result in finished):
        return None
    # trials of earlier versions have no calibrated figures
    figures = {name: [result["steps"].get(name) for result in finished] for name in STEP_FIGURES}
    return {name: _average(values) for name, values in figures.items() if None not in values}


def _average(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _pool(config: StudyConfig, test: JudgedPool) -> dict[str, Any]:
    """The figures that do not depend on a loss. The tied answers of a vote share it."""
    policies = {}
    for policy, members in test.members.items():
        groups = list(members.values())
        correct = [test.correct[indices] for indices in groups]
        answers = [[answer_of(test.records[i]) for i in indices] for indices in groups]
        policies[policy] = {
            "questions": len(groups),
            "mean_accuracy": mean_accuracy(correct).mean,
            "majority_vote": majority_vote(
                [group_answers(candidates) for candidates in answers], correct, "share"
            ).mean,
            "pass_at_n": pass_at_n(correct, config.n).mean,
        }
    return {"questions": len(test.questions), "n": config.n, "policies": policies}
