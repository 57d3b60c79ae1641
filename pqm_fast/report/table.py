"""The ablation table: the options in which runs differ, and their final figures; seeds of one run share a row."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import mean, stdev
from typing import Any

from pqm_fast.evaluate.best_of_n import something_to_choose
from pqm_fast.report.find import Run
from pqm_fast.report.groups import evaluations
from pqm_fast.train.config import WITHOUT_EFFECT

Best = Callable[[list[float]], float]
# {figure: (its heading, which value is marked)}; what a fixed threshold gives says where a model's scores lie
STEPS: dict[str, tuple[str, Best | None]] = {
    "step_accuracy_calibrated": ("step accuracy, calibrated", max),
    "step_accuracy": ("step accuracy, fixed", None),
    "balanced_accuracy_calibrated": ("balanced, calibrated", max),
    "first_error_accuracy_calibrated": ("first error, calibrated", max),
    "first_error_accuracy": ("first error, fixed", None),
    "auroc": ("AUROC", max),
    "pair_accuracy": ("pairs in order", max),
}
HELD_OUT = {"loss": ("loss", None), **STEPS}  # losses are on scales of their own: of the loss, and of zeta


@dataclass(frozen=True, slots=True)
class Column:
    """A figure: `values` has one entry per run, None where a run lacks it."""

    group: str
    name: str
    values: list[float | None]
    intervals: list[str]
    """One per run, as a tooltip; empty for none."""
    best: Best | None = None
    """Which value is marked; None where more is not better, or the figure does not depend on the model."""


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    spread: str = ""
    """What stands small behind it: the standard deviation over seeds."""
    tooltip: str = ""
    value: float | None = None
    is_best: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    options: list[str]
    columns: list[Column]
    rows: list[list[Cell]]
    """name, options, figures."""
    seeds: bool
    """Whether a row stands for several runs."""


def ablation(runs: Sequence[Run]) -> Table:
    """Runs whose options differ in the seed alone share a row: mean and standard deviation."""
    columns = [column for column in (*_training(runs), *_evaluated(runs)) if any(v is not None for v in column.values)]
    rows = _by_options(runs)
    differing = _differing([runs[own[0]].options for own in rows])
    if len(rows) < len(runs):  # a row names its seeds
        differing = [name for name in differing if name != "seed"]
    figures = [_figures(column, rows) for column in columns]
    cells = [
        [_name(runs, own), *(Cell(_shown(runs[own[0]].options.get(name, ""))) for name in differing), *of_row]
        for own, of_row in zip(rows, zip(*figures, strict=True) if figures else [()] * len(rows), strict=True)
    ]
    return Table(differing, columns, cells, seeds=len(rows) < len(runs))


def _by_options(runs: Sequence[Run]) -> list[list[int]]:
    """The runs of each row. A run without options stands alone."""
    rows: dict[Any, list[int]] = defaultdict(list)
    for i, run in enumerate(runs):
        own = {k: v for k, v in run.options.items() if k not in WITHOUT_EFFECT and k != "seed"}
        rows[repr(sorted(own.items())) if own else i].append(i)
    return list(rows.values())


def _differing(options: Sequence[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for own in options for name in own)
    known = [own for own in options if own]
    return [name for name in names if name not in WITHOUT_EFFECT and len({repr(own.get(name)) for own in known}) > 1]


def _name(runs: Sequence[Run], own: list[int]) -> Cell:
    names = [runs[i].name for i in own]
    if len(own) == 1:
        return Cell(names[0], tooltip=str(runs[own[0]].path))
    seeds = ", ".join(str(runs[i].options.get("seed")) for i in own)
    return Cell(names[0], spread=f"and {len(own) - 1} more, seeds {seeds}", tooltip="\n".join(names))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def _figures(column: Column, rows: list[list[int]]) -> list[Cell]:
    """One cell per row."""
    cells = []
    for own in rows:
        values = [v for i in own if (v := column.values[i]) is not None]
        if not values:
            cells.append(Cell("–"))
            continue
        tooltip = "\n".join(column.intervals[i] for i in own if column.intervals[i])
        spread = ""
        if len(values) > 1:
            if all(map(isfinite, values)) and stdev(values):
                spread = f"±{stdev(values):.3f}"
            tooltip = f"mean of {', '.join(f'{v:.3f}' for v in values)}, ± their standard deviation\n{tooltip}"
        cells.append(Cell(_number(mean(values)), spread, tooltip.strip(), mean(values)))
    known = [cell.value for cell in cells if cell.value is not None and isfinite(cell.value)]
    if column.best is None or len(known) < 2:
        return cells
    best = column.best(known)
    return [Cell(c.text, c.spread, c.tooltip, c.value, is_best=c.value == best) for c in cells]


def _number(value: float) -> str:
    if not isfinite(value):  # of a run that diverged
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) > 1 else f"{value:.3f}"


def _training(runs: Sequence[Run]) -> list[Column]:
    nothing_yet: dict[str, Any] = {}
    last = [next((row for row in reversed(run.metrics) if row["kind"] == "eval"), nothing_yet) for run in runs]
    nothing = [""] * len(runs)
    steps = [float(run.metrics[-1]["step"]) if run.metrics else None for run in runs]
    columns = [Column("training, held out", "optimizer steps", steps, nothing)]
    for name, (shown, best) in HELD_OUT.items():
        values = [row.get(name) for row in last]
        columns.append(Column("training, held out", shown, values, nothing, best))
    return columns


def _evaluated(runs: Sequence[Run]) -> list[Column]:
    columns: list[Column] = []
    for group in evaluations(runs):
        by_run = [group.by_run.get(i, {}) for i in range(len(runs))]
        title = group.title or group.names[0]

        def column(part: str, name: str, path: Sequence[str], best: Best | None = None) -> None:
            found = [_at(result, path) for result in by_run]  # noqa: B023 (called at once)
            values = [one.get("mean") if isinstance(one, dict) else one for one in found]
            columns.append(Column(f"{title}, {part}", name, values, [_interval(one) for one in found], best))  # noqa: B023

        for name, (shown, best) in STEPS.items():
            column("steps", shown, ["steps", name], best)
        column("steps", "equally long steps", ["auroc_by_position", "same_length"], max)
        column("steps", "position only", ["auroc_by_position", "all", "position_only"])
        column("steps", "length only", ["auroc_by_position", "all", "length_only"])
        column("steps", "calibration error", ["calibration", "error"], min)
        column("ProcessBench", "F1, calibrated", ["processbench_calibrated", "f1"], max)
        column("ProcessBench", "F1, fixed", ["processbench", "f1"])
        for kind in ("erroneous", "correct"):
            column("ProcessBench", f"on {kind}, calibrated", ["processbench_calibrated", f"accuracy_on_{kind}"], max)
        column("solutions", "mean accuracy", ["overall", "mean_accuracy"])
        pools = [pool for result in by_run if (pool := result.get("overall")) and something_to_choose(pool)]
        if not pools:
            continue
        if common := set.intersection(*(set(pool["pass_at_n"]) for pool in pools)):
            n = max(common, key=int)
            column("solutions", f"vote of {n}", ["overall", "self_consistency", n])
            for how in dict.fromkeys(how for pool in pools for how in pool["best_of_n"]):
                column("solutions", f"best of {n}, {how}", ["overall", "best_of_n", how, n], max)
            column("solutions", f"pass@{n}", ["overall", "pass_at_n", n])
    return columns


def _at(result: Any, path: Sequence[str]) -> Any:
    for key in path:
        result = result.get(key) if isinstance(result, dict) else None
    return result


def _interval(one: Any) -> str:
    if not isinstance(one, dict) or one.get("low") is None:
        return ""
    return f"95% interval {one['low']:.3f} to {one['high']:.3f}, {one['questions']} questions"
