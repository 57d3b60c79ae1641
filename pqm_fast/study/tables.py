"""Writes the results of a study as Markdown tables."""

from collections.abc import Callable, Iterable

from pqm_fast.study import markdown
from pqm_fast.study.analyse import STEP_FIGURES
from pqm_fast.study.select import Entry, Results, base, base_cells, base_title, select


def tables(results: Results) -> dict[str, str]:
    """{section: heading and tables}, without the sections that have nothing to compare."""
    sections: dict[str, Callable[[Results], str]] = {
        "labels": _labels,
        "models": _models,
        "zeta": _zeta,
        "policies": _policies,
        "aggregators": _aggregators,
        "steps": _steps,
        "rates": _rates,
    }
    texts = {name: section(results) for name, section in sections.items()}
    return {name: text for name, text in texts.items() if text}


def cell_name(cell: Entry) -> str:
    zeta = "" if cell["zeta"] is None else f" (zeta {cell['zeta']:g})"
    return f"{cell['loss']}{zeta}, {cell['model']}, labels {cell['labels']}"


def _labels(results: Results) -> str:
    kinds = results["config"]["labels"]
    columns = {labels: select(results, **base(results) | {"labels": labels}) for labels in kinds}
    return _by_loss(results, "Losses and labels", columns)


def _models(results: Results) -> str:
    columns = {name: select(results, **base(results) | {"model": name}) for name in results["config"]["models"]}
    return _by_loss(results, "Losses and backbones", columns) if len(columns) > 1 else ""


def _by_loss(results: Results, title: str, columns: dict[str, list[Entry]]) -> str:
    """Best-of-N of every loss in every column, and the differences from the baseline."""
    config = results["config"]
    values, differences = [], []
    for loss in config["losses"]:
        row = [next((cell for cell in cells if cell["loss"] == loss), {}) for cells in columns.values()]
        values.append([loss, *(markdown.interval(cell.get("best_of_n")) for cell in row)])
        if loss != config["baseline"]:
            differences.append([loss, *(markdown.difference(cell.get("against")) for cell in row)])
    parts = [f"## {title}", markdown.table([f"best of {results['pool']['n']}", *columns], values)]
    if differences:
        parts.append(markdown.table([f"minus {config['baseline']}", *columns], differences))
    return "\n\n".join(parts)


def _zeta(results: Results) -> str:
    config = results["config"]
    columns = _step_columns(results)
    cells = select(results, **base(results), loss="rank", zeta={config["zeta"], *config["zetas"]})
    rows = [
        [
            f"{cell['zeta']:g}",
            markdown.interval(cell.get("best_of_n")),
            markdown.difference(cell.get("against")),
            *_step_figures(columns, cell),
        ]
        for cell in sorted(cells, key=lambda cell: cell["zeta"])
    ]
    head = ["zeta", f"best of {results['pool']['n']}", f"minus {config['baseline']}", *columns.values()]
    return f"## rank by zeta\n\n{markdown.table(head, rows)}" if len(rows) > 1 else ""


def _policies(results: Results) -> str:
    n, policies = results["pool"]["n"], results["pool"]["policies"]

    def yardstick(heading: str, name: str) -> list[str]:
        return [heading, *(markdown.number(figures[name]) for figures in policies.values())]

    rows = [yardstick("mean accuracy", "mean_accuracy"), yardstick("majority vote", "majority_vote")]
    for cell in base_cells(results):
        rows.append([cell["loss"], *(markdown.interval(cell["by_policy"][name]) for name in policies)])
    rows.append(yardstick(f"any of {n} right", "pass_at_n"))
    return f"## By policy, {base_title(results)}\n\n{markdown.table([f'best of {n}', *policies], rows)}"


def _aggregators(results: Results) -> str:
    names = results["config"]["aggregate"]
    if len(names) < 2:
        return ""
    rows = [
        [cell["loss"], *(markdown.number(cell["by_aggregator"][name]) for name in names), cell["aggregate"]]
        for cell in base_cells(results)
    ]
    return f"## Aggregators, {base_title(results)}\n\n{markdown.table(['loss', *names, 'chosen'], rows)}"


def _step_columns(results: Results) -> dict[str, str]:
    """{figure: heading} of the step figures that some cell has: older results have no calibrated ones."""
    stored_figures = {name for cell in results["cells"] for name in cell.get("steps") or {}}
    return {name: heading for name, heading in STEP_FIGURES.items() if name in stored_figures}


def _step_figures(columns: Iterable[str], cell: Entry) -> list[str]:
    return [markdown.number((cell.get("steps") or {}).get(name)) for name in columns]


def _steps(results: Results) -> str:
    cells = base_cells(results)
    if not any(cell["steps"] for cell in cells):
        return ""
    columns = _step_columns(results)
    rows = [[cell["loss"], *_step_figures(columns, cell)] for cell in cells]
    return f"## Steps, {base_title(results)}\n\n{markdown.table(['loss', *columns.values()], rows)}"


def _rates(results: Results) -> str:
    """A table of the losses by themselves, and one of the combinations, which also tried weights."""
    cells = results["cells"]
    if len(_tuning(cells[0])) < 2:
        return ""
    by_themselves = [cell for cell in cells if "+" not in cell["loss"]]
    combinations = [cell for cell in cells if "+" in cell["loss"]]
    parts = ["## Learning rates"]
    for heading, group in (("tuning pool", by_themselves), ("tuning pool, rate x weight", combinations)):
        if group:
            rows = [[cell_name(c), *map(markdown.number, _tuning(c).values()), _chosen_rate(c)] for c in group]
            parts.append(markdown.table([heading, *_tuning(group[0]), "chosen"], rows))
    return "\n\n".join(parts)


def _tuning(cell: Entry) -> dict[str, float | None]:
    """{rate: best Best-of-N on the tuning pool}; for a combination the key is RATE x WEIGHT."""
    tuning: dict[str, float | None] = {}
    for rate, best in cell["tuning"].items():
        tuning |= {f"{rate} x {weight}": b for weight, b in best.items()} if isinstance(best, dict) else {rate: best}
    return tuning


def _chosen_rate(cell: Entry) -> str:
    weight = cell.get("compare_weight")  # older results have none
    return f"{cell.get('learning_rate', '-')}" + ("" if weight is None else f" x {weight:g}")
