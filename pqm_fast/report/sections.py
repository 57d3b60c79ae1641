"""The sections of the page as HTML, and the charts in them as data for charts.js."""

from collections.abc import Sequence
from html import escape
from typing import Any

from pqm_fast.report.ablation import ablation
from pqm_fast.report.charts import Chart, best_of_n_charts, layer_charts, step_charts, training_charts
from pqm_fast.report.errors import error_tables
from pqm_fast.report.groups import Group, group_evaluations
from pqm_fast.report.html_tables import html_tables
from pqm_fast.report.probe import probe_tables
from pqm_fast.report.runs import Run

FIXED = (
    "Fixed: at the threshold 0, or at that of `evaluate --threshold`. The comparative losses leave the level of the"
    " scores free, so figures at a fixed threshold show where the scores lie, not how well they separate steps."
    " Calibrated: each solution is judged with a threshold that was chosen on other questions; compare models by these"
    " figures. Position only, length only: the AUROC of a score that knows only a step's number, or its number of"
    " characters."
)


def page_sections(runs: Sequence[Run], solutions: dict[str, Any]) -> tuple[dict[str, str], dict[str, list[Chart]]]:
    """({heading: HTML of a section with data}, {name of a `data-charts` element: its charts})."""
    groups = group_evaluations(runs)
    charts: dict[str, list[Chart]] = {}
    sections = {
        "Runs": _runs(runs),
        "Training": _training(runs, charts),
        "Probe": _probe(runs, charts),
        "Best-of-N": "".join(_best_of_n(group, len(runs), charts, i) for i, group in enumerate(groups)),
        "Steps": "".join(_steps(group, runs, charts, i) for i, group in enumerate(groups)),
        "Solutions": _solutions(solutions),
    }
    return {name: html for name, html in sections.items() if html}, charts


def _runs(runs: Sequence[Run]) -> str:
    table = ablation(runs)
    notes = ["A click on a heading sorts."]
    if len(table.rows) > 1:
        notes.insert(0, "The options shown are those in which the runs differ. The best value of a figure is marked.")
    if table.seeds:
        notes.append("Runs that differ only in the seed share a row: mean ± standard deviation over the seeds.")
    if any(column.name.endswith(("fixed", "calibrated")) for column in table.columns):
        notes.append(FIXED)
    if any(column.intervals != [""] * len(runs) for column in table.columns):
        notes.append("95% intervals are in the tooltips.")
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
            "For curves of Best-of-N and for solutions, run `pqm-fast evaluate --out RUN/NAME.json` and `pqm-fast score"
            " --out RUN/NAME.jsonl`, where RUN is the run's folder."
        )
    return f'<p class="note">{" ".join(notes)}</p>{html_tables(table)}{options}' if table.columns else options


def _training(runs: Sequence[Run], charts: dict[str, list[Chart]]) -> str:
    charts["training"] = training_charts(runs)
    if not charts["training"]:
        return ""
    note = (
        "The comparative losses are not meant to reach 0: with equal scores for all correct steps, a loss is at the"
        " floor shown, and its scale depends on the loss and its margin. Read the held-out accuracies beside it. Curves"
        " of training are smoothed over a tenth of their points; the pale line behind a curve is what was logged."
    )
    return f'<p class="note">{note}</p><div data-charts="training"><div class="charts"></div></div>'


def _probe(runs: Sequence[Run], charts: dict[str, list[Chart]]) -> str:
    charts["probe"] = layer_charts(runs)
    if not charts["probe"]:
        return ""
    return f'<div data-charts="probe"><div class="charts"></div></div>{probe_tables(runs)}'


def _best_of_n(group: Group, runs: int, charts: dict[str, list[Chart]], number: int) -> str:
    name = f"pool-{number}"
    charts[name] = best_of_n_charts(group, colour_by_aggregator=runs == 1)
    if not charts[name]:
        return ""
    choices = list(dict.fromkeys(s["choice"] for chart in charts[name] for s in chart["series"] if "choice" in s))
    options = (["all"] if runs == 1 and len(choices) > 1 else []) + choices
    select = "".join(f'<option value="{escape(choice)}">{escape(choice)}</option>' for choice in options)
    temperatures = {f"{result['temperature']:g}": None for result in group.by_run.values() if "temperature" in result}
    softmin = f" (softmin at temperature {' or '.join(temperatures)})" if temperatures else ""
    note = (
        "Expected share of questions answered correctly when the model picks one of N candidates, over all subsets of"
        " N. Bands are 95% intervals over questions; with more than two curves, they are in the tooltips. The score of"
        f" a solution aggregates the Q-values of its steps{softmin}:"
    )
    return (
        f'{_heading(group)}<div data-charts="{name}"><p class="note">{note}'
        f' <select name="aggregator" aria-label="aggregator">{select}</select></p><div class="charts"></div></div>'
    )


def _steps(group: Group, runs: Sequence[Run], charts: dict[str, list[Chart]], number: int) -> str:
    name = f"steps-{number}"
    charts[name] = step_charts(group)
    errors = error_tables(group, [run.name for run in runs])
    if not charts[name] and not errors:
        return ""
    charts_html = f'<div data-charts="{name}"><div class="charts"></div></div>' if charts[name] else ""
    return f"{_heading(group)}{charts_html}{errors}"


def _heading(group: Group) -> str:
    return f"<h3>{escape(group.title)}</h3>" if group.title else ""


def _solutions(solutions: dict[str, Any]) -> str:
    num_shown = len(solutions["items"])
    if not num_shown:
        return ""
    total, distinct, num_worst = (solutions[name] for name in ("total", "distinct", "worst"))
    selection = f"All {distinct:,} scored solutions"
    if num_worst is not None:
        parts = f"the {num_worst:,} where the model was most wrong, and a random sample of the others (--solutions)"
        if any("type" in item for item in solutions["items"]):
            parts += f", with as many of each {escape(solutions['by'])} as there are"
        selection = f"{num_shown:,} of {distinct:,} scored solutions: {parts}"
    selection += f"; copies ({total:,} records in all) are shown once." if distinct < total else "."
    legend = (
        "How wrong the model was is the largest |sigmoid(q) − label| over a solution's steps; where steps have no"
        " labels, |sigmoid(q) − correct| of the step with the lowest Q-value. That step is framed. Each step shows its"
        " Q-value, sigmoid(q), and the label: ✓ correct, ✗ wrong, a number between, · none."
    )
    if any(len(item["q"]) > 1 for item in solutions["items"]):
        legend += " Beside them are the Q-values of the other models that scored the solution."
    if any("first" in item for item in solutions["items"]):
        legend += (
            " First error: found if the first step that the model calls wrong is the first wrong one, missed if it is a"
            " later one or there is none, a false alarm if it is an earlier one. The model calls a step wrong below the"
            " threshold that finds most first errors on the other questions of its file; the Q-value of the first such"
            " step is underlined."
        )
    elif any("position" in item for item in solutions["items"]):
        legend += " First errors are not judged: there are too few questions for a threshold from other questions."
    return (
        f'<p class="note">{selection} {legend}</p><p class="note">Q-value: low<span class="scale"></span>high</p>'
        '<div id="viewer"></div>'
    )
