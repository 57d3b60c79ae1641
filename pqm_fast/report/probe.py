"""The best heads of a probe as a table: a row for each loss."""

from collections.abc import Sequence
from html import escape

from pqm_fast.probe.best import SELECT, Setting, best_by_loss
from pqm_fast.report.ablation import Cell, figure_cell, mark_best
from pqm_fast.report.figures import STEPS
from pqm_fast.report.html_tables import html_table
from pqm_fast.report.runs import Run

OPTIONS = ("zeta", "weight", "rate")
NOTE = (
    "Each point of the chart and each row of the table is a setting (margin zeta, weight, learning rate): the one with"
    " the highest mean over its seeds on the held-out questions, at that layer or on all layers. Figures are means ±"
    " standard deviation over the seeds. The settings were chosen on the same held-out questions, so the figures are a"
    " little too high: test the model on others."
)


def select_of(run: Run) -> str:
    """The held-out figure that the heads of a probe are chosen by."""
    return str(run.probe.get("select", SELECT))


def setting_text(setting: Setting) -> str:
    parts = [f"{name} {value:g}" for name, value in _options(setting).items()]
    return ", ".join([*parts, f"{len(setting.heads)} seed{'s' * (len(setting.heads) > 1)}"])


def probe_tables(runs: Sequence[Run]) -> str:
    """A table for each probe among the runs, and a note."""
    probes = [run for run in runs if run.heads]
    html = "".join(_table(run, run.name if len(probes) > 1 else "") for run in probes)
    return f'{html}<p class="note">{NOTE}</p>'


def _table(run: Run, name: str) -> str:
    best = best_by_loss(run.heads, select_of(run))
    if not best:
        return ""
    title = "Best head of each loss" + (f": {name}" if name else "")
    options = [name for name in OPTIONS if any(name in _options(setting) for setting in best.values())]
    rows = [
        [
            Cell(loss),
            Cell(str(setting.layer), value=setting.layer),
            *(_option_cell(_options(setting).get(option)) for option in options),
            Cell(", ".join(map(str, setting.seeds)), value=len(setting.seeds)),
        ]
        for loss, setting in best.items()
    ]
    figures = {key: heading for key, (heading, _) in STEPS.items() if any(s.values(key) for s in best.values())}
    for key in figures:
        cells = [_figure(setting, key) for setting in best.values()]
        figure_best = STEPS[key][1]
        for row, cell in zip(rows, cells if figure_best is None else mark_best(cells, figure_best), strict=True):
            row.append(cell)
    heads = ["loss", "layer", *options, "seeds", *figures.values()]
    return f"<h4>{escape(title)}</h4>{_about(run)}{html_table(heads, rows, 1)}"


def _about(run: Run) -> str:
    known = run.probe
    if not {"model", "decoder_layers", "chosen"} <= known.keys():
        return ""
    text = f"Heads on {known['model']}, which has {known['decoder_layers']} decoder layers. Chosen: {known['chosen']}."
    return f'<p class="note">{escape(text)}</p>'


def _options(setting: Setting) -> dict[str, float]:
    """Those that the loss has."""
    values = (setting.zeta, setting.compare_weight, setting.learning_rate)
    return {name: value for name, value in zip(OPTIONS, values, strict=True) if value is not None}


def _option_cell(value: float | None) -> Cell:
    return Cell("") if value is None else Cell(f"{value:g}", value=value)


def _figure(setting: Setting, key: str) -> Cell:
    spread = setting.spread(key)
    tooltip = ", ".join(f"{value:.3f}" for value in setting.values(key))
    return figure_cell(setting.mean(key), "" if spread is None else f"±{spread:.3f}", tooltip)
