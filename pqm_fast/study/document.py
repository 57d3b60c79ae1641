"""Writes study.md: what was run, and the tables."""

from typing import Any

from pqm_fast.study.select import Entry, Results
from pqm_fast.study.tables import cell_name, tables


def document(results: Results) -> str:
    """The text of study.md; every figure is from results.json."""
    return "\n\n".join([_head(results), *tables(results).values()]) + "\n"


def _head(results: Results) -> str:
    config, pool = results["config"], results["pool"]
    data = ", ".join(config["data"]) or f"the arithmetic world (seed {config['world_seed']})"
    rates = ", ".join(f"{rate:g}" for rate in config["learning_rates"])
    seeds = ", ".join(map(str, config["seeds"]))
    lines = [
        "# Study",
        "",
        f"{results['trials']} trainings of {config['steps']:,} steps on {data}; {results['device']}.",
        f"The figures are Best-of-{pool['n']} among one policy's candidates (the expectation over subsets), averaged "
        f"over {pool['questions']} test questions and {len(pool['policies'])} policies.",
        "Learning rate and aggregator were chosen at each point of the grid, on other questions, from "
        f"{rates} and {', '.join(config['aggregate'])}.{_combinations(config)}",
        f"Training seeds: {seeds}; 95% intervals over seeds and questions. Differences are from {config['baseline']}, "
        "seed by seed and question by question, and bold where the interval excludes 0.",
    ]
    diverged = [cell for cell in results["cells"] if cell.get("diverged", 1)]
    lines += [f"Diverged: {cell_name(cell)}, {_diverged_part(cell)}." for cell in diverged]
    lines += results["left_out"]
    return "\n".join(lines)


def _combinations(config: dict[str, Any]) -> str:
    if not any("+" in loss for loss in config["losses"]):
        return ""
    rates, weights = (
        ", ".join(f"{value:g}" for value in values)
        for values in (config["compare_learning_rates"] or config["learning_rates"], config["compare_weights"])
    )
    return f" Combinations chose from the rates {rates} and the weights {weights}, as many trials as other losses had."


def _diverged_part(cell: Entry) -> str:
    if "diverged" in cell:
        return f"{cell['diverged']} seeds, which are left out"
    return "with every learning rate" + (" and weight" if "+" in cell["loss"] else "")
