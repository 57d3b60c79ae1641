"""One HTML page with everything in it: style, scripts and data. It loads nothing, and forbids the browser to."""

import json
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from pqm_fast.report.charts import Chart, best_of_n_charts, step_charts, training_charts
from pqm_fast.report.find import Run
from pqm_fast.report.groups import Group, evaluations
from pqm_fast.report.table import Cell, Table, ablation

HERE = Path(__file__).parent
SCRIPTS = ("charts.js", "viewer.js", "start.js")
FIXED = (
    "Fixed: at the threshold 0, or that of `evaluate --threshold`. The comparative losses leave the level of the scores"
    " free, so it says where they lie, not what they tell apart. Calibrated: each solution is judged with a threshold"
    " that was chosen on other questions; compare models by that. Position only, length only: the AUROC of a score"
    " that knows nothing but a step's number, or its number of characters."
)


def page(runs: Sequence[Run], solutions: dict[str, Any], title: str) -> bytes:
    """The page, in UTF-8. `solutions` as `choose` returns them. A section without data is left out."""
    groups = evaluations(runs)
    charts: dict[str, list[Chart]] = {}
    sections = {
        "Runs": _runs(runs),
        "Training": _training(runs, charts),
        "Best-of-N": "".join(_best_of_n(group, len(runs), charts, i) for i, group in enumerate(groups)),
        "Steps": "".join(_steps(group, runs, charts, i) for i, group in enumerate(groups)),
        "Solutions": _solutions(solutions),
    }
    sections = {name: body for name, body in sections.items() if body}
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    body = "".join(f'<section id="{name.lower()}"><h2>{name}</h2>{text}</section>' for name, text in sections.items())
    data = {"runs": [run.name for run in runs], "charts": charts, "solutions": solutions}
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    # of scripts only this one runs, whatever stands in the texts
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; form-action 'none'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{(HERE / 'page.css').read_text(encoding='utf-8')}</style></head>\n"
        f"<body><h1>{escape(title)}</h1><noscript><p>Curves and solutions need JavaScript.</p></noscript>"
        f"<nav>{links}</nav>{_buttons(runs)}{body}\n"
        f'<script type="application/json" id="data">{_json(data)}</script>\n'
        f"<script>{script}</script>"
        f'<footer class="note">pqm-fast {version("pqm-fast")}</footer></body></html>\n'
    ).encode("utf-8", "backslashreplace")  # a lone surrogate becomes the escape that JSON has for it


def _json(value: Any) -> str:
    """JSON that can stand in a script element: `<` is written as an escape, so no text can end the element."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _buttons(runs: Sequence[Run]) -> str:
    """The runs with their colours; a click hides one in every chart."""
    if len(runs) < 2:
        return ""
    made = "".join(
        f'<button type="button" data-run="{i}" aria-pressed="true" title="{escape(str(run.path))}">'
        f'<i style="background:var(--run-{i % 8})"></i>{escape(run.name)}</button>'
        for i, run in enumerate(runs)
    )
    return f'<div class="runs">{made}</div>'


def _runs(runs: Sequence[Run]) -> str:
    table = ablation(runs)
    notes = ["A click on a heading sorts."]
    if len(table.rows) > 1:
        notes.insert(0, "Options are those in which the runs differ; the best value of a figure is marked.")
    if table.seeds:
        notes.append("Runs that differ in the seed alone share a row: mean ± standard deviation over the seeds.")
    if any(column.name.endswith(("fixed", "calibrated")) for column in table.columns):
        notes.append(FIXED)
    if any(column.intervals != [""] * len(runs) for column in table.columns):
        notes.append("95% intervals stand in the tooltips.")
    options = "".join(
        f"<details><summary>{escape(run.name)}: all options</summary><table>"
        + "".join(
            f'<tr><td class="text">{escape(k)}</td><td class="text">{escape(str(v))}</td></tr>'
            for k, v in run.options.items()
        )
        + "</table></details>"
        for run in runs
        if run.options
    )
    if not any(run.evaluations or run.scored for run in runs):
        notes.append(
            "Curves of Best-of-N and solutions appear here once `pqm-fast evaluate --out RUN/NAME.json` and `pqm-fast"
            " score --out RUN/NAME.jsonl` have written into the run's folder."
        )
    return f'<p class="note">{" ".join(notes)}</p>{_tables(table)}{options}' if table.columns else options


def _tables(table: Table) -> str:
    """One for each group of figures, narrow enough for a page; the options stand in the first."""
    made, first = "", 1 + len(table.options)
    start = first
    for group, own in groupby(table.columns, key=lambda column: column.group):
        columns = list(own)
        here = slice(start, start + len(columns))
        left = first if not made else 1
        start += len(columns)
        rows = [row[:left] + row[here] for row in table.rows if any(cell.value is not None for cell in row[here])]
        heads = ["run", *table.options][:left] + [column.name for column in columns]
        made += f"<h4>{escape(group)}</h4>{_table(heads, rows, left)}"
    return made


def _table(heads: list[str], rows: list[list[Cell]], texts: int) -> str:
    """The first `texts` columns hold text, the others figures."""

    def classes(k: int, *more: str) -> str:
        own = [*more, *(["text"] if k < texts else [])]
        return f' class="{" ".join(own)}"' if own else ""

    head = "".join(f'<th data-column="{k}"{classes(k)}>{escape(name)}</th>' for k, name in enumerate(heads))
    body = "".join(f"<tr>{''.join(_cell(cell, classes, k) for k, cell in enumerate(row))}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(cell: Cell, classes: Any, k: int) -> str:
    value = cell.text if cell.value is None and cell.text != "–" else cell.value
    data = "" if value is None else f' data-value="{escape(str(value))}"'
    tooltip = f' title="{escape(cell.tooltip)}"' if cell.tooltip else ""
    spread = f"<small>{escape(cell.spread)}</small>" if cell.spread else ""
    return f"<td{classes(k, *(['best'] if cell.is_best else []))}{data}{tooltip}>{escape(cell.text)}{spread}</td>"


def _training(runs: Sequence[Run], charts: dict[str, list[Chart]]) -> str:
    charts["training"] = training_charts(runs)
    if not charts["training"]:
        return ""
    note = (
        "The comparative losses are not meant to reach 0: with all correct steps scored alike the loss sits at the"
        " floor shown, and its scale depends on the loss and its margin. Read the held-out accuracies beside it. Curves"
        " of training are smoothed over a tenth of their points; the pale line behind one is what was logged."
    )
    return f'<p class="note">{note}</p><div data-charts="training"><div class="charts"></div></div>'


def _best_of_n(group: Group, runs: int, charts: dict[str, list[Chart]], number: int) -> str:
    name = f"pool-{number}"
    charts[name] = best_of_n_charts(group, colour_by_how=runs == 1)
    if not charts[name]:
        return ""
    choices = list(dict.fromkeys(s["choice"] for chart in charts[name] for s in chart["series"] if "choice" in s))
    options = (["all"] if runs == 1 and len(choices) > 1 else []) + choices
    select = "".join(f'<option value="{escape(choice)}">{escape(choice)}</option>' for choice in options)
    note = (
        "Expected share of questions answered rightly when the model picks one of N candidates, over all subsets of N."
        " Bands are 95% intervals over questions; those of more than two curves stand in the tooltips. A solution's"
        " score is its steps' aggregated Q-value:"
    )
    return (
        f'{_heading(group)}<div data-charts="{name}"><p class="note">{note}'
        f' <select aria-label="aggregator">{select}</select></p><div class="charts"></div></div>'
    )


def _steps(group: Group, runs: Sequence[Run], charts: dict[str, list[Chart]], number: int) -> str:
    name = f"steps-{number}"
    charts[name] = step_charts(group)
    types = _types(group, [run.name for run in runs])
    if not charts[name] and not types:
        return ""
    drawn = f'<div data-charts="{name}"><div class="charts"></div></div>' if charts[name] else ""
    return f"{_heading(group)}{drawn}{types}"


def _types(group: Group, names: list[str]) -> str:
    """PRMScore by kind of error, a row for each run, as PRMBench has it."""
    found = {i: result["by_type"] for i, result in group.by_run.items() if "by_type" in result}
    if not found:
        return ""
    kinds = list(dict.fromkeys(kind for own in found.values() for kind in own["types"]))
    head = "".join(f'<th class="text">{escape(kind)}</th>' for kind in kinds)
    rows = ""
    for i, own in found.items():
        cells = "".join(_prm_score(own["types"].get(kind, {})) for kind in kinds)
        rows += f'<tr><td class="text">{escape(names[i])}</td>{cells}</tr>'
    return (
        f"<h4>PRMScore by {escape(next(iter(found.values()))['field'])}</h4>"
        '<p class="note">The mean of two F1 scores over steps, of the correct and of the wrong ones (PRMBench):'
        " calibrated, and below it at the fixed threshold.</p>"
        f'<div class="scroll"><table><tr><th class="text">run</th>{head}</tr>{rows}</table></div>'
    )


def _prm_score(own: dict[str, Any]) -> str:
    calibrated, fixed = (
        "–" if value is None else f"{value:.3f}" for value in (own.get("prm_score_calibrated"), own.get("prm_score"))
    )
    return f'<td class="text">{calibrated}<small>{fixed}</small></td>'


def _heading(group: Group) -> str:
    return f"<h3>{escape(group.title)}</h3>" if group.title else ""


def _solutions(solutions: dict[str, Any]) -> str:
    shown = len(solutions["items"])
    if not shown:
        return ""
    total, distinct, worst = (solutions[name] for name in ("total", "distinct", "worst"))
    which = f"All {distinct:,} scored solutions"
    if worst is not None:
        others = f"the {worst:,} where the model was most wrong, and a random sample of the others (--solutions)"
        which = f"{shown:,} of {distinct:,} scored solutions: {others}"
    which += f"; copies ({total:,} records in all) are shown once." if distinct < total else "."
    how = (
        "How wrong the model was is the largest |sigmoid(q) − label| over a solution's steps; where steps have no"
        " labels, |sigmoid(q) − correct| of the step with the lowest Q-value. That step is framed. On each step: its"
        " Q-value, sigmoid(q), and the label: ✓ correct, ✗ wrong, a number between, · none."
    )
    return (
        f'<p class="note">{which} {how}</p><p class="note">Q-value: low<span class="scale"></span>high</p>'
        '<div id="viewer"></div>'
    )
