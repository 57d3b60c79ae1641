"""Tests the chosen heads and the controls, and computes the figures with their intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pqm_fast.data.records import Record, first_wrong
from pqm_fast.evaluate.processbench import calibrate_threshold
from pqm_fast.evaluate.step_thresholds import thresholds_from
from pqm_fast.probe.heads import Head
from pqm_fast.probe_study.controls import CONTROLS, control_scores
from pqm_fast.probe_study.options import ProbeStudyConfig
from pqm_fast.probe_study.pool_test import PoolTest
from pqm_fast.probe_study.step_test import Values, errors, first_error_values, step_values
from pqm_fast.probe_study.trials import Cell
from pqm_fast.scoring.stored import Scores
from pqm_fast.study.interval import interval


@dataclass(frozen=True)
class Data:
    """The records that are tuned and tested on."""

    tuning: list[Record]
    test: list[Record]
    groups: list[str]
    """Of each test record."""
    processbench: list[Record]
    pool_records: list[Record]
    pool: PoolTest | None

    def records(self, name: str) -> list[Record]:
        """Those of a set: tuning, test, processbench or pool."""
        sets = {"tuning": self.tuning, "test": self.test, "processbench": self.processbench, "pool": self.pool_records}
        return sets[name]


Scored = Callable[[str], list[Scores]]
"""The scores of one head or control, by the name of a set of records: tuning, test, processbench or pool."""


@dataclass(frozen=True)
class Tested:
    """What one head or control reaches: {figure: values of each group} of each test, and where it is wrong."""

    steps: Values
    first_errors: Values
    pool: dict[str, np.ndarray]
    aggregator: str | None
    errors: dict[str, Any]


def tested_on(data: Data, scored: Scored) -> Tested:
    """The figures of one head or control, at thresholds from the tuning questions."""
    tuning, tuning_labels = scored("tuning"), [record.labels or [] for record in data.tuning]
    scores = scored("test")
    thresholds = thresholds_from(tuning, tuning_labels, len(data.test))
    first_errors: Values = {}
    if data.processbench:
        threshold = calibrate_threshold(tuning, [first_wrong(own) for own in tuning_labels])
        first_errors = first_error_values(data.processbench, scored("processbench"), threshold)
    aggregator, pool = None, {}
    if data.pool is not None:
        aggregator = data.pool.aggregator(scored("pool"))
        best = data.pool.values(scored("pool"), aggregator)
        pool = {"best_of_n": best, "gain": best - data.pool.one_candidate}
    return Tested(
        step_values(data.test, data.groups, scores, thresholds),
        first_errors,
        pool,
        aggregator,
        errors(data.test, scores, thresholds),
    )


def analyse(
    config: ProbeStudyConfig, cells: Sequence[Cell], data: Data, scored: Callable[[Head], Scored]
) -> dict[str, Any]:
    """JSON-ready figures.

    Returns:
        `cells`: for each loss and kind of labels the chosen options; `layers`: {layer: AUROC on the tuning questions};
        `figures`: {test: {figure: {mean, low, high}}}, with 95% intervals over seeds and questions; `against`: the
        same for the difference from the baseline with the same labels; `aggregators`: of each seed; `errors`: figures
        by type of error and by position, means over seeds. `controls`: the same for scores that know nothing, without
        seeds. `pool`: what needs no model.
    """
    tested = {(cell.loss, cell.labels): [tested_on(data, scored(h)) for h in cell.seeds] for cell in cells}
    entries = []
    for cell in cells:
        own, baseline = tested[cell.loss, cell.labels], tested[config.baseline, cell.labels]
        chosen = cell.seeds[0].spec
        entries.append(
            {
                "loss": cell.loss,
                "labels": cell.labels,
                "layer": chosen.layer,
                "zeta": chosen.zeta,
                "compare_weight": chosen.compare_weight,
                "learning_rate": chosen.learning_rate,
                "epochs": [head.best_epoch for head in cell.seeds],
                "layers": {str(head.spec.layer): head.held_out["auroc"] for head in cell.layers if head.held_out},
                "figures": _figures(own),
                "against": None if cell.loss == config.baseline else _figures(own, baseline),
                "aggregators": [one.aggregator for one in own],
                "errors": mean_of([one.errors for one in own]),
            }
        )
    controls = []
    for name in CONTROLS:
        one = tested_on(data, _control(name, data))
        controls.append(
            {"name": name, "figures": _figures([one]), "aggregators": [one.aggregator], "errors": one.errors}
        )
    result: dict[str, Any] = {"cells": entries, "controls": controls}
    if data.pool is not None:
        yardsticks = data.pool.yardsticks()
        result["pool"] = {
            "questions": len(data.pool.test),
            "n": data.pool.candidates,
            "yardsticks": {name: _interval(values[None]) for name, values in yardsticks.items()},
        }
    return result


def _control(name: str, data: Data) -> Scored:
    return lambda which: control_scores(name, data.records(which))


def _figures(seeds: Sequence[Tested], baseline: Sequence[Tested] | None = None) -> dict[str, dict[str, Any]]:
    """{test: {figure: {mean, low, high}}} over seeds and questions, or of the difference from `baseline`."""
    figures: dict[str, dict[str, Any]] = {}
    for test in ("steps", "first_errors", "pool"):
        of_seeds = [getattr(one, test) for one in seeds]
        figures[test] = {}
        for name in of_seeds[0]:
            values = [of_seed[name] for of_seed in of_seeds]
            if baseline is not None:
                other = [getattr(one, test)[name] for one in baseline]
                values = [None if a is None or b is None else a - b for a, b in zip(values, other, strict=True)]
            complete = [v for v in values if v is not None]
            lowest = 0.0 if baseline is None and name != "gain" else -1.0
            figures[test][name] = _interval(np.array(complete), lowest) if len(complete) == len(values) else None
    return figures


def _interval(values: np.ndarray, lowest: float = 0.0) -> dict[str, Any]:
    return asdict(interval(values, lowest))


def mean_of(trees: Sequence[Any]) -> Any:
    """The mean of numbers at the same place in equal structures; None where one is None; other values as in the first.

    Integers that are equal in all stay integers: they count records."""
    first = trees[0]
    if isinstance(first, Mapping):
        return {key: mean_of([tree[key] for tree in trees]) for key in first}
    if isinstance(first, list):
        return [mean_of([tree[i] for tree in trees]) for i in range(len(first))]
    if None in trees:
        return None
    if isinstance(first, (int, float)) and not isinstance(first, bool):
        return first if all(tree == first for tree in trees) else float(np.mean(trees))
    return first
