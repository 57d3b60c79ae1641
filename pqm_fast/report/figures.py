"""Collects the final figures of the runs, as columns of the ablation table: of the training, and of each evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pqm_fast.evaluate.best_of_n import something_to_choose
from pqm_fast.report.groups import Results, group_evaluations
from pqm_fast.report.runs import Run

Best = Callable[[list[float]], float]
# {figure: (heading, which value is marked)}; figures at a fixed threshold depend on where a model's scores lie, so none
# of them is marked
STEPS: dict[str, tuple[str, Best | None]] = {
    "step_accuracy_calibrated": ("step accuracy, calibrated", max),
    "step_accuracy": ("step accuracy, fixed", None),
    "balanced_accuracy_calibrated": ("balanced, calibrated", max),
    "first_error_accuracy_calibrated": ("first error, calibrated", max),
    "first_error_accuracy": ("first error, fixed", None),
    "auroc": ("AUROC", max),
    "pair_accuracy": ("pairs in order", max),
}
HELD_OUT = {"loss": ("loss", None), **STEPS}  # losses with other formulas or margins are on other scales


@dataclass(frozen=True, slots=True)
class Column:
    """A figure of every run."""

    group: str
    name: str
    values: list[float | None]
    """[runs]; None where a run lacks the figure."""
    intervals: list[str]
    """[runs]: the 95% interval as a tooltip; empty for none."""
    best: Best | None = None
    """Which value is marked; None where more is not better, or the figure does not depend on the model."""


class _Figure(NamedTuple):
    part: str
    name: str
    path: tuple[str, ...]
    """Keys in the results of `evaluate`."""
    best: Best | None = None


_STEP_FIGURES = (
    *(_Figure("steps", heading, ("steps", key), best) for key, (heading, best) in STEPS.items()),
    _Figure("steps", "equally long steps", ("auroc_by_position", "same_length"), max),
    _Figure("steps", "position only", ("auroc_by_position", "all", "position_only")),
    _Figure("steps", "length only", ("auroc_by_position", "all", "length_only")),
    _Figure("steps", "calibration error", ("calibration", "error"), min),
    _Figure("ProcessBench", "F1, calibrated", ("processbench_calibrated", "f1"), max),
    _Figure("ProcessBench", "F1, fixed", ("processbench", "f1")),
    *(
        _Figure("ProcessBench", f"on {kind}, calibrated", ("processbench_calibrated", f"accuracy_on_{kind}"), max)
        for kind in ("erroneous", "correct")
    ),
    _Figure("solutions", "mean accuracy", ("overall", "mean_accuracy")),
)


def columns(runs: Sequence[Run]) -> list[Column]:
    """The figures that at least one run has."""
    all_columns = [*_training(runs), *_evaluated(runs)]
    return [column for column in all_columns if any(value is not None for value in column.values)]


def _training(runs: Sequence[Run]) -> list[Column]:
    no_evaluation: dict[str, Any] = {}
    last_evaluations = [
        next((row for row in reversed(run.metrics) if row["kind"] == "eval"), no_evaluation) for run in runs
    ]
    no_intervals = [""] * len(runs)
    steps = [float(run.metrics[-1]["step"]) if run.metrics else None for run in runs]
    return [
        Column("training, held out", "optimizer steps", steps, no_intervals),
        *(
            Column("training, held out", heading, [row.get(name) for row in last_evaluations], no_intervals, best)
            for name, (heading, best) in HELD_OUT.items()
        ),
    ]


def _evaluated(runs: Sequence[Run]) -> list[Column]:
    figure_columns = []
    for group in group_evaluations(runs):
        by_run = [group.by_run.get(i, {}) for i in range(len(runs))]
        title = group.title or group.names[0]
        for figure in (*_STEP_FIGURES, *_pool_figures(by_run)):
            entries = [_at(results, figure.path) for results in by_run]
            values = [entry.get("mean") if isinstance(entry, dict) else entry for entry in entries]
            intervals = [_interval(entry) for entry in entries]
            figure_columns.append(Column(f"{title}, {figure.part}", figure.name, values, intervals, figure.best))
    return figure_columns


def _pool_figures(by_run: Sequence[Results]) -> list[_Figure]:
    """Vote, best of N and pass@N for the largest N that all runs have."""
    pools = [pool for results in by_run if (pool := results.get("overall")) and something_to_choose(pool)]
    common = set.intersection(*(set(pool["pass_at_n"]) for pool in pools)) if pools else set()
    if not common:
        return []
    n = max(common, key=int)
    aggregators = dict.fromkeys(aggregator for pool in pools for aggregator in pool["best_of_n"])
    return [
        _Figure("solutions", f"vote of {n}", ("overall", "self_consistency", n)),
        *(
            _Figure("solutions", f"best of {n}, {aggregator}", ("overall", "best_of_n", aggregator, n), max)
            for aggregator in aggregators
        ),
        _Figure("solutions", f"pass@{n}", ("overall", "pass_at_n", n)),
    ]


def _at(results: Any, path: Sequence[str]) -> Any:
    for key in path:
        results = results.get(key) if isinstance(results, dict) else None
    return results


def _interval(entry: Any) -> str:
    if not isinstance(entry, dict) or entry.get("low") is None:
        return ""
    return f"95% interval {entry['low']:.3f} to {entry['high']:.3f}, {entry['questions']} questions"
