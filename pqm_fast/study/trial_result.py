"""The result of one trial: figures from its scores of the pools, and the file that keeps them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pqm_fast.errors import PQMError
from pqm_fast.evaluate.step_metrics import step_metrics
from pqm_fast.evaluate.step_thresholds import calibrated_metrics, cross_thresholds
from pqm_fast.scoring.stored import Scores
from pqm_fast.study.config import StudyConfig
from pqm_fast.study.grid import Trial
from pqm_fast.study.judged_pool import JudgedPool

DIGITS = 6  # digits of each stored Best-of-N

PoolScores = tuple[JudgedPool, Sequence[Scores]]
"""A pool, and the step scores of each of its records."""

Result = Mapping[str, Any]
"""The contents of a trial's file:

- `trial`: its cell, learning rate, seed and weight of an added comparison
- `diverged`: None, or the message where a loss, a weight or a Q-value was not finite; such a result has no figures
- `tuning`: {aggregator: mean Best-of-N on the tuning pool}
- `test`: {aggregator: [policies][questions] Best-of-N on the test pool, null where a policy has too few candidates}
- `curve`: {aggregator: {n: mean Best-of-n on the test pool}}
- `steps`: `step_metrics` and `calibrated_metrics` of the test steps with labels, or None without any

A mean is over policies, then over questions."""


def result_file(config: StudyConfig, trial: Trial) -> Path:
    return config.folder / "trials" / f"{trial.name}.json"


def read_result(path: Path) -> Result:
    """Reads a trial's file. Raises PQMError if it is damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise PQMError(f"{path}: damaged ({error}); delete it, and the trial is done again") from error


def diverged_result(trial: Trial, message: str) -> Result:
    return {"trial": asdict(trial), "diverged": message}


def finished_result(config: StudyConfig, trial: Trial, tuning: PoolScores, test: PoolScores) -> Result:
    ns = _powers(config.n)
    (tuning_pool, tuning_scores), (test_pool, test_scores) = tuning, test
    best_of_n = {name: test_pool.best_of_n(test_scores, name, ns, config.temperature) for name in config.aggregate}
    return {
        "trial": asdict(trial),
        "diverged": None,
        "tuning": {
            name: _mean(tuning_pool.best_of_n(tuning_scores, name, [config.n], config.temperature)[..., 0])
            for name in config.aggregate
        },
        "test": {name: _as_lists(values[..., -1]) for name, values in best_of_n.items()},
        "curve": {
            name: {str(n): _mean(values[..., i]) for i, n in enumerate(ns)} for name, values in best_of_n.items()
        },
        "steps": _step_figures(test_pool, test_scores),
    }


def _powers(n: int) -> list[int]:
    """1, 2, 4, ... and `n` itself."""
    return sorted({*(2**k for k in range(n.bit_length())), n})


def _step_figures(pool: JudgedPool, scores: Sequence[Scores]) -> dict[str, Any] | None:
    labelled = [(q, r.labels, r.prompt) for q, r in zip(scores, pool.records, strict=True) if r.labels is not None]
    if not labelled:
        return None
    q, y, questions = (list(column) for column in zip(*labelled, strict=True))
    return step_metrics(q, y) | calibrated_metrics(q, y, cross_thresholds(q, y, questions))


def _mean(values: np.ndarray) -> float:
    """Mean of [policies, questions]: over policies, then over questions."""
    return float(np.nanmean(np.nanmean(values, axis=0)))


def _as_lists(values: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(v) else round(float(v), DIGITS) for v in row] for row in values]
