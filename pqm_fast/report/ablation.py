"""The ablation table: the options in which runs differ, and their final figures. Seeds of one run share a row."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import mean, stdev
from typing import Any

from pqm_fast.report.figures import Best, Column, columns
from pqm_fast.report.runs import Run
from pqm_fast.train.config import WITHOUT_EFFECT


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    spread: str = ""
    """Small text behind it: the standard deviation over seeds."""
    tooltip: str = ""
    value: float | None = None
    is_best: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    options: list[str]
    columns: list[Column]
    rows: list[list[Cell]]
    """In each row the name, the options, and the figures."""
    seeds: bool
    """Whether any row shows several runs."""


def ablation(runs: Sequence[Run]) -> Table:
    """Runs whose options differ only in the seed share a row, with mean and standard deviation."""
    figures = columns(runs)
    rows = _by_options(runs)
    options = _differing([runs[row[0]].options for row in rows])
    if len(rows) < len(runs):  # a row names its seeds
        options = [name for name in options if name != "seed"]
    cells = [_figure_cells(column, rows) for column in figures]  # [columns, rows]
    table_rows = [
        [
            _name_cell(runs, row),
            *(Cell(_option_text(runs[row[0]].options.get(name, ""))) for name in options),
            *(column_cells[i] for column_cells in cells),
        ]
        for i, row in enumerate(rows)
    ]
    return Table(options, figures, table_rows, seeds=len(rows) < len(runs))


def _by_options(runs: Sequence[Run]) -> list[list[int]]:
    """The indices of the runs in each row. A run without options has a row for itself."""
    rows: dict[Any, list[int]] = defaultdict(list)
    for i, run in enumerate(runs):
        options = {k: v for k, v in run.options.items() if k not in WITHOUT_EFFECT and k != "seed"}
        rows[repr(sorted(options.items())) if options else i].append(i)
    return list(rows.values())


def _differing(options: Sequence[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for row_options in options for name in row_options)
    known_options = [row_options for row_options in options if row_options]
    return [
        name
        for name in names
        if name not in WITHOUT_EFFECT and len({repr(row_options.get(name)) for row_options in known_options}) > 1
    ]


def _name_cell(runs: Sequence[Run], row: list[int]) -> Cell:
    names = [runs[i].name for i in row]
    if len(row) == 1:
        return Cell(names[0], tooltip=str(runs[row[0]].path))
    seeds = ", ".join(str(runs[i].options.get("seed")) for i in row)
    return Cell(names[0], spread=f"and {len(row) - 1} more, seeds {seeds}", tooltip="\n".join(names))


def _option_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def _figure_cells(column: Column, rows: list[list[int]]) -> list[Cell]:
    """One cell per row."""
    cells = []
    for row in rows:
        values = [v for i in row if (v := column.values[i]) is not None]
        if not values:
            cells.append(figure_cell(None))
            continue
        tooltip = "\n".join(column.intervals[i] for i in row if column.intervals[i])
        spread = ""
        if len(values) > 1:
            if all(map(isfinite, values)) and stdev(values):
                spread = f"±{stdev(values):.3f}"
            tooltip = f"mean of {', '.join(f'{v:.3f}' for v in values)}, ± their standard deviation\n{tooltip}"
        cells.append(figure_cell(mean(values), spread, tooltip.strip()))
    return cells if column.best is None else mark_best(cells, column.best)


def mark_best(cells: list[Cell], best: Best) -> list[Cell]:
    """The cells with the best value marked, if they have different values."""
    finite_values = [cell.value for cell in cells if cell.value is not None and isfinite(cell.value)]
    if len({*finite_values}) < 2:
        return cells
    best_value = best(finite_values)
    return [Cell(c.text, c.spread, c.tooltip, c.value, is_best=c.value == best_value) for c in cells]


def figure_cell(value: float | None, spread: str = "", tooltip: str = "") -> Cell:
    """A cell with a figure; a dash for None."""
    return Cell("–", spread, tooltip) if value is None else Cell(_number(value), spread, tooltip, value)


def _number(value: float) -> str:
    if not isfinite(value):  # the run diverged
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) > 1 else f"{value:.3f}"
