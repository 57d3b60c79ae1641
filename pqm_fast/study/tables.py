"""The results of a study as a page of Markdown; every figure is from results.json."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Entry = dict[str, Any]
Figures = dict[str, Any]


def document(found: dict[str, Any]) -> str:
    """study.md from results.json."""
    parts = [_head(found), *tables(found).values()]
    return "\n\n".join(parts) + "\n"


def tables(found: dict[str, Any]) -> dict[str, str]:
    """{section: heading, table and note}; sections with nothing to compare are left out."""
    sections: dict[str, Callable[[dict[str, Any]], str]] = {
        "labels": _labels,
        "models": _models,
        "zeta": _zeta,
        "policies": _policies,
        "aggregators": _aggregators,
        "steps": _steps,
        "rates": _rates,
    }
    made = {name: section(found) for name, section in sections.items()}
    return {name: text for name, text in made.items() if text}


def select(found: dict[str, Any], **values: Any) -> list[Entry]:
    """The cells with these values, those on the grid's margins in `zeta` only if it is asked for."""
    zeta = values.pop("zeta", (None, found["config"]["zeta"]))
    return [
        cell
        for cell in found["cells"]
        if cell["zeta"] in zeta and all(cell[name] == value for name, value in values.items())
    ]


def _head(found: dict[str, Any]) -> str:
    config, pool = found["config"], found["pool"]
    data = ", ".join(config["data"]) or f"the arithmetic world (seed {config['world_seed']})"
    rates = ", ".join(f"{rate:g}" for rate in config["learning_rates"])
    seeds = ", ".join(map(str, config["seeds"]))
    lines = [
        "# Study",
        "",
        f"{found['trials']} trainings of {config['steps']:,} steps on {data}; {found['device']}.",
        f"Figures: Best-of-{pool['n']} among one policy's candidates (expected over subsets), the mean over "
        f"{pool['questions']} test questions and {len(pool['policies'])} policies.",
        "Learning rate and aggregator were chosen at each point of the grid on other questions, among "
        f"{rates} and {', '.join(config['aggregate'])}.",
        f"Training seeds: {seeds}; 95% intervals over seeds and questions. Differences are from {config['baseline']}, "
        "seed by seed and question by question; bold where the interval leaves 0 out.",
    ]
    diverged = [cell for cell in found["cells"] if cell.get("diverged", 1)]
    lines += [f"Diverged: {_name(cell)}, {_times(cell)}." for cell in diverged]
    lines += found["left_out"]
    return "\n".join(lines)


def _name(cell: Entry) -> str:
    zeta = "" if cell["zeta"] is None else f" (zeta {cell['zeta']:g})"
    return f"{cell['loss']}{zeta}, {cell['model']}, labels {cell['labels']}"


def _times(cell: Entry) -> str:
    return f"{cell['diverged']} seeds, which are left out" if "diverged" in cell else "with every learning rate"


def _labels(found: dict[str, Any]) -> str:
    config = found["config"]
    columns = {text: select(found, model=config["models"][0], labels=text) for text in config["labels"]}
    return _by_loss(found, "Losses and labels", columns)


def _models(found: dict[str, Any]) -> str:
    config = found["config"]
    columns = {name: select(found, model=name, labels=config["labels"][0]) for name in config["models"]}
    return _by_loss(found, "Losses and backbones", columns) if len(columns) > 1 else ""


def _by_loss(found: dict[str, Any], title: str, columns: dict[str, list[Entry]]) -> str:
    """Best-of-N, and its difference from the baseline, of every loss in every column."""
    config = found["config"]
    values, differences = [], []
    for loss in config["losses"]:
        own = [next((cell for cell in cells if cell["loss"] == loss), {}) for cells in columns.values()]
        values.append([loss, *(_interval(cell.get("best_of_n")) for cell in own)])
        if loss != config["baseline"]:
            differences.append([loss, *(_difference(cell.get("against")) for cell in own)])
    parts = [f"## {title}", _markdown([f"best of {found['pool']['n']}", *columns], values)]
    if differences:
        parts.append(_markdown([f"minus {config['baseline']}", *columns], differences))
    return "\n\n".join(parts)


def _zeta(found: dict[str, Any]) -> str:
    config = found["config"]
    zetas = sorted({config["zeta"], *config["zetas"]})
    columns = _step_columns(found)
    cells = select(found, loss="rank", model=config["models"][0], labels=config["labels"][0], zeta=zetas)
    rows = [
        [
            f"{cell['zeta']:g}",
            _interval(cell.get("best_of_n")),
            _difference(cell.get("against")),
            *_step_cells(columns, cell),
        ]
        for cell in sorted(cells, key=lambda cell: cell["zeta"])
    ]
    head = ["zeta", f"best of {found['pool']['n']}", f"minus {config['baseline']}", *columns.values()]
    return f"## rank by zeta\n\n{_markdown(head, rows)}" if len(rows) > 1 else ""


def _first(found: dict[str, Any]) -> list[Entry]:
    """The losses on the first model with the first labels."""
    config = found["config"]
    cells = select(found, model=config["models"][0], labels=config["labels"][0])
    return [cell for cell in cells if "best_of_n" in cell]


def _policies(found: dict[str, Any]) -> str:
    pool = found["pool"]["policies"]
    rows = [
        ["mean accuracy", *(_number(own["mean_accuracy"]) for own in pool.values())],
        ["majority vote", *(_number(own["majority_vote"]) for own in pool.values())],
    ]
    for cell in _first(found):
        rows.append([cell["loss"], *(_interval(cell["by_policy"][name]) for name in pool)])
    rows.append([f"any of {found['pool']['n']} right", *(_number(own["pass_at_n"]) for own in pool.values())])
    n = found["pool"]["n"]
    return f"## By policy, {_where(found)}\n\n{_markdown([f'best of {n}', *pool], rows)}"


def _aggregators(found: dict[str, Any]) -> str:
    names = found["config"]["aggregate"]
    if len(names) < 2:
        return ""
    rows = [
        [cell["loss"], *(_number(cell["by_aggregator"][name]) for name in names), cell["aggregate"]]
        for cell in _first(found)
    ]
    return f"## Aggregators, {_where(found)}\n\n{_markdown(['loss', *names, 'chosen'], rows)}"


STEP_COLUMNS = {
    "auroc": "AUROC over all steps",
    "pair_accuracy": "pairs in order within a solution",
    "step_accuracy": "step accuracy",
    "step_accuracy_calibrated": "step accuracy, calibrated",
    "balanced_accuracy_calibrated": "balanced, calibrated",
    "first_error_accuracy": "first error",
    "first_error_accuracy_calibrated": "first error, calibrated",
}


def _step_columns(found: dict[str, Any]) -> dict[str, str]:
    """Those of a figure that some cell has: older results have no calibrated ones."""
    known = {name for cell in found["cells"] for name in cell.get("steps") or {}}
    return {name: shown for name, shown in STEP_COLUMNS.items() if name in known}


def _step_cells(columns: Iterable[str], cell: Entry) -> list[str]:
    return [_number((cell.get("steps") or {}).get(name)) for name in columns]


def _steps(found: dict[str, Any]) -> str:
    cells = _first(found)
    if not any(cell["steps"] for cell in cells):
        return ""
    columns = _step_columns(found)
    rows = [[cell["loss"], *_step_cells(columns, cell)] for cell in cells]
    return f"## Steps, {_where(found)}\n\n{_markdown(['loss', *columns.values()], rows)}"


def _rates(found: dict[str, Any]) -> str:
    rates = [f"{rate:g}" for rate in found["config"]["learning_rates"]]
    if len(rates) < 2:
        return ""
    rows = [
        [_name(cell), *(_number(cell["tuning"][rate]) for rate in rates), f"{cell.get('learning_rate', '-')}"]
        for cell in found["cells"]
    ]
    head = ["tuning pool", *rates, "chosen"]
    return f"## Learning rates\n\n{_markdown(head, rows)}"


def _where(found: dict[str, Any]) -> str:
    config = found["config"]
    return f"{config['models'][0]}, labels {config['labels'][0]}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(own: Figures | None) -> str:
    if own is None:
        return "-"
    return f"{own['mean']:.3f}" if own["low"] is None else f"{own['mean']:.3f} ({own['low']:.3f} to {own['high']:.3f})"


def _difference(own: Figures | None) -> str:
    if own is None:
        return "-"
    if own["low"] is None:
        return f"{own['mean']:+.3f}"
    text = f"{own['mean']:+.3f} ({own['low']:+.3f} to {own['high']:+.3f})"
    return f"**{text}**" if own["low"] > 0 or own["high"] < 0 else text


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
