"""Writes study.md of a probe study: what was run, and the tables."""

from typing import Any

from pqm_fast.probe_study.step_test import FIRST_ERROR_FIGURES, STEP_FIGURES
from pqm_fast.study import markdown

Results = dict[str, Any]
# Average F1 on the four subsets of ProcessBench (arXiv 2412.06559, table 3; Qwen2.5-Math-PRM: arXiv 2501.07301)
PUBLISHED = {
    "Math-Shepherd-PRM-7B": 31.5,
    "Skywork-PRM-7B": 42.1,
    "Qwen2.5-Math-7B-PRM800K": 56.5,
    "Qwen2.5-Math-PRM-7B": 73.5,
    "o1-mini (as a critic)": 87.9,
}
TESTS = {"steps": "Steps", "first_errors": "First errors (ProcessBench)", "pool": "Best-of-N"}


def document(results: Results) -> str:
    """The text of study.md; every figure is from results.json."""
    return "\n\n".join([_head(results), *tables(results).values()]) + "\n"


def tables(results: Results) -> dict[str, str]:
    """{section: heading and tables}, without the sections that have nothing to show."""
    texts = {f"steps-{labels}": _by_loss(results, "steps", labels) for labels in _labels(results)}
    texts |= {f"first-errors-{labels}": _by_loss(results, "first_errors", labels) for labels in _labels(results)}
    texts |= {
        "pool": _pool(results),
        "chosen": _chosen(results),
        "layers": _layers(results),
        "types": _types(results),
        "positions": _positions(results),
    }
    return {name: text for name, text in texts.items() if text}


def _labels(results: Results) -> list[str]:
    return list(results["config"]["labels"])


def _cells(results: Results, labels: str) -> list[dict[str, Any]]:
    return [cell for cell in results["cells"] if cell["labels"] == labels]


def _head(results: Results) -> str:
    config, data = results["config"], results["data"]
    seeds = ", ".join(map(str, config["seeds"]))
    lines = [
        "# Probe study",
        "",
        f"Heads on the hidden states of {config['model']} ({results['dtype']}); {results['device']}.",
        f"{data['training']:,} solutions of {', '.join(config['data'])} to train on, {data['tuning']:,} to tune on "
        f"with exact labels, and {data['test']:,} of {data['test_groups']:,} groups to test on.",
        f"Seeds: {seeds}; 95% intervals over seeds and questions. Differences are from {config['baseline']} with the "
        "same labels, seed by seed and question by question, and bold where the interval excludes 0.",
    ]
    return "\n".join(lines)


def _by_loss(results: Results, test: str, labels: str) -> str:
    """The figures of a test for every loss, beside the controls, and the differences from the baseline."""
    headings = {"steps": STEP_FIGURES, "first_errors": FIRST_ERROR_FIGURES}[test]
    cells = _cells(results, labels)
    if not cells[0]["figures"][test]:
        return ""
    config = results["config"]

    def row(name: str, figures: Any, show: Any) -> list[str]:
        return [name, *(show(figures[test].get(figure)) for figure in headings)]

    rows = [row(cell["loss"], cell["figures"], markdown.interval) for cell in cells]
    if labels == _labels(results)[0]:
        rows += [row(control["name"], control["figures"], markdown.interval) for control in results["controls"]]
    parts = [
        f"## {TESTS[test]}, labels {labels}",
        markdown.table(["loss", *headings.values()], rows),
        markdown.table(
            [f"minus {config['baseline']}", *headings.values()],
            [row(cell["loss"], cell["against"], markdown.difference) for cell in cells if cell["against"]],
        ),
    ]
    return "\n\n".join(parts)


def _pool(results: Results) -> str:
    """Best-of-N of every loss with every kind of labels, and the differences."""
    if "pool" not in results:
        return ""
    pool, kinds, baseline = results["pool"], _labels(results), results["config"]["baseline"]
    losses = list(dict.fromkeys(cell["loss"] for cell in results["cells"]))
    by_place = {(cell["loss"], cell["labels"]): cell for cell in results["cells"]}
    rows = [[name, *[markdown.interval(value)] * len(kinds)] for name, value in pool["yardsticks"].items()]
    for control in results["controls"]:
        rows.append([control["name"], *[markdown.interval(control["figures"]["pool"]["best_of_n"])] * len(kinds)])
    rows += [
        [loss, *(markdown.interval(by_place[loss, kind]["figures"]["pool"]["best_of_n"]) for kind in kinds)]
        for loss in losses
    ]
    differences = [
        [loss, *(markdown.difference(by_place[loss, kind]["against"]["pool"]["best_of_n"]) for kind in kinds)]
        for loss in losses
        if loss != baseline
    ]
    gains = [
        [control["name"], *[markdown.difference(control["figures"]["pool"]["gain"])] * len(kinds)]
        for control in results["controls"]
    ]
    gains += [
        [loss, *(markdown.difference(by_place[loss, kind]["figures"]["pool"]["gain"]) for kind in kinds)]
        for loss in losses
    ]
    title = f"## Best of {pool['n']} candidates, {pool['questions']:,} questions"
    return "\n\n".join(
        [
            title,
            markdown.table([f"best of {pool['n']}", *kinds], rows),
            markdown.table(["minus one candidate", *kinds], gains),
            markdown.table([f"minus {baseline}", *kinds], differences),
        ]
    )


def _chosen(results: Results) -> str:
    rows = [
        [
            cell["loss"],
            cell["labels"],
            str(cell["layer"]),
            "-" if cell["zeta"] is None else f"{cell['zeta']:g}",
            "-" if cell["compare_weight"] is None else f"{cell['compare_weight']:g}",
            f"{cell['learning_rate']:g}",
            ", ".join(map(str, cell["epochs"])),
            ", ".join(dict.fromkeys(name or "-" for name in cell["aggregators"])),
        ]
        for cell in results["cells"]
    ]
    head = ["loss", "labels", "layer", "zeta", "weight", "rate", "best epoch of each seed", "aggregators"]
    return f"## What was chosen on the tuning questions\n\n{markdown.table(head, rows)}"


def _layers(results: Results) -> str:
    cells = [cell for cell in results["cells"] if cell["layers"]]
    layers = list(cells[0]["layers"]) if cells else []
    if len(layers) < 2:
        return ""
    rows = [[cell["loss"], *(markdown.number(cell["layers"].get(layer)) for layer in layers)] for cell in cells]
    return f"## AUROC on the tuning questions, by layer\n\n{markdown.table(['loss', *layers], rows)}"


def _types(results: Results) -> str:
    """Where which loss is wrong: by type of error."""
    columns = [*_cells(results, _labels(results)[0]), *results["controls"]]
    types = list(columns[0]["errors"].get("by_type", {}))
    if not types:
        return ""
    parts = ["## By type of error"]
    for heading, figure in {
        "wrong steps found": "accuracy_on_wrong_calibrated",
        "pairs in order": "pair_accuracy",
        "first error": "first_error_accuracy_calibrated",
    }.items():
        known = [name for name in types if columns[0]["errors"]["by_type"][name][figure] is not None]
        rows = [
            [_name(column), *(markdown.number(column["errors"]["by_type"][name][figure]) for name in known)]
            for column in columns
        ]
        parts.append(markdown.table([heading, *known], rows))
    return "\n\n".join(parts)


def _positions(results: Results) -> str:
    """Where which loss is wrong: by the position of the step."""
    columns = [*_cells(results, _labels(results)[0]), *results["controls"]]
    parts = ["## By position"]
    for heading, figure, count in (
        ("wrong steps found", "accuracy_on_wrong_calibrated", "wrong"),
        ("pairs in order", "pair_accuracy", "wrong"),
        ("first error found", "first_error_accuracy_calibrated", "first_errors"),
    ):
        places = [i for i, row in enumerate(_rows(columns[0])) if row[count]]
        head = [f"{_span(_rows(columns[0])[i])} ({_rows(columns[0])[i][count]:,})" for i in places]
        rows = [[_name(column), *(markdown.number(_rows(column)[i][figure]) for i in places)] for column in columns]
        parts.append(markdown.table([f"{heading}, step (how many)", *head], rows))
    return "\n\n".join(parts)


def _rows(column: dict[str, Any]) -> list[dict[str, Any]]:
    return column["errors"]["by_position"]["rows"]


def _name(column: dict[str, Any]) -> str:
    return column["loss"] if "loss" in column else column["name"].partition(" ")[0]


def _span(row: dict[str, Any]) -> str:
    return str(row["first"]) if row["first"] == row["last"] else f"{row['first']} to {row['last']}"


def published() -> str:
    """The figures of published PRMs on ProcessBench, for scale: the average F1 over its four subsets."""
    return markdown.table(["published model", "average F1"], [[name, f"{f1:.1f}"] for name, f1 in PUBLISHED.items()])
