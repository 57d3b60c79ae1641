"""Where which model is wrong: a row for each type of error or position, and a column of each figure for each model."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

from pqm_fast.report.ablation import Cell, figure_cell, mark_best
from pqm_fast.report.figures import Best
from pqm_fast.report.groups import Group
from pqm_fast.report.html_tables import html_table
from pqm_fast.report.text import bin_text

Entry = dict[str, Any]  # the figures of a model in a row


class _Figure(NamedTuple):
    heading: str
    value: Callable[[Entry], float | None]
    below: Callable[[Entry], float | None]
    """The figure in small text below it."""
    best: Best | None
    """None if a model that calls every step wrong, or none, could have the best value of a row."""


def _share_wrong(of: str) -> Callable[[Entry], float | None]:
    """The share of the correct or of the wrong steps that the model judges wrongly."""

    def share(entry: Entry) -> float | None:
        accuracy = entry.get(f"accuracy_on_{of}_calibrated")
        return None if accuracy is None else 1 - accuracy

    return share


def _nothing(_: Entry) -> None:
    return None


FIGURES = (
    _Figure("wrong steps missed", _share_wrong("wrong"), _share_wrong("correct"), None),
    _Figure("pairs in order", lambda entry: entry.get("pair_accuracy"), _nothing, max),
    _Figure("first error found", lambda entry: entry.get("first_error_accuracy_calibrated"), _nothing, None),
    _Figure("PRMScore", lambda entry: entry.get("prm_score_calibrated"), lambda entry: entry.get("prm_score"), max),
)
NOTE = (
    "Wrong steps missed: the share of the wrong steps that the model calls correct; below it the share of the correct"
    " steps that it calls wrong. Pairs in order: of a wrong step and a correct one in the same solution; by position,"
    " the wrong step is at these positions. First error found: the share of the solutions whose first wrong step is the"
    " first one that the model calls wrong, or in which it calls none wrong where none is. Pairs in order need no"
    " threshold; the other figures are at calibrated ones."
)
PRM_SCORE = (
    " PRMScore: the mean of two F1 scores over steps, that of the correct and that of the wrong ones (PRMBench);"
    " below it at the fixed threshold."
)
SEVERAL = (
    " The best value in a row is marked where it cannot be had by calling more or fewer steps wrong: that of{} pairs in"
    " order. Where models were tested on different data, the number is that of the smallest to that of the largest."
)


def error_tables(group: Group, names: Sequence[str]) -> str:
    """The tables by type of error and by position. `names` are those of all runs."""
    by_type = {i: results["by_type"] for i, results in group.by_run.items() if "by_type" in results}
    html = ""
    for field in dict.fromkeys(found["field"] for found in by_type.values()):
        types = {names[i]: found["types"] for i, found in by_type.items() if found["field"] == field}
        html += _table(f"Where models are wrong, by {field}", field, types, {"solutions": "trajectories"})
    positions = {
        names[i]: _by_bin(results["by_position"])
        for i, results in group.by_run.items()
        if "by_position" in results  # older results have none
    }
    counts = {"wrong steps": "wrong", "first errors": "first_errors"}
    html += _table("Where models are wrong, by position", "step", positions, counts)
    if not html:
        return ""
    several = SEVERAL.format(" PRMScore and of" if by_type else "") if len(group.by_run) > 1 else ""
    return f'{html}<p class="note">{NOTE}{PRM_SCORE if by_type else ""}{several}</p>'


def _by_bin(by_position: dict[str, Any]) -> dict[str, Entry]:
    bins = {bin_text(row["first"], row["last"]): row for row in by_position["rows"]}
    no_error = by_position["no_error"]
    return bins | {"no error": no_error | {"first_errors": no_error["trajectories"]}}


def _table(title: str, head: str, by_model: dict[str, dict[str, Entry]], counts: dict[str, str]) -> str:
    """A table of {model: {row: its figures}}. `counts`: {heading: key} of the columns with numbers of steps."""
    names = list(dict.fromkeys(name for rows in by_model.values() for name in rows))
    cells: list[list[Cell]] = []
    for name in names:
        entries = [rows.get(name, {}) for rows in by_model.values()]
        cells.append([Cell(name), *(_count_cell([entry.get(key) for entry in entries]) for key in counts.values())])
    groups = [("", 1 + len(counts))]
    for figure in FIGURES:
        rows = [[_cell(figure, model_rows.get(name, {})) for model_rows in by_model.values()] for name in names]
        if any(cell.value is not None for row in rows for cell in row):
            groups.append((figure.heading, len(by_model)))
            for row, figure_cells in zip(cells, rows, strict=True):
                row += figure_cells if figure.best is None else mark_best(figure_cells, figure.best)
    if len(groups) == 1:
        return ""
    heads = [head, *counts, *list(by_model) * (len(groups) - 1)]
    return f"<h4>{escape(title)}</h4>{html_table(heads, cells, 1, groups)}"


def _cell(figure: _Figure, entry: Entry) -> Cell:
    below = figure.below(entry)
    return figure_cell(figure.value(entry), "" if below is None else f"{below:.3f}")


def _count_cell(by_model: list[int | None]) -> Cell:
    """The number of all models that have the row; from the smallest to the largest if they differ."""
    counts = sorted({count for count in by_model if count is not None})
    if not counts:
        return Cell("")
    text = f"{counts[-1]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return Cell(text, value=counts[-1])
