"""The operations of scoring, counted from the batches that each way makes. This runs no model, and needs no GPU."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pqm_benchmarks.comparison.run import describe_workload
from pqm_benchmarks.score.ways.ladder import WAYS
from pqm_benchmarks.shared.shapes import ALL_SHAPES
from pqm_benchmarks.shared.text import aligned
from pqm_benchmarks.shared.workload import Questions
from pqm_benchmarks.work.flops import scoring_flops
from pqm_benchmarks.work.model_flops import count_model_flops


def count(questions: Questions, ways: Sequence[str], shapes: Sequence[str]) -> dict[str, Any]:
    """{"workload", "ways": {way: {"title", "setting", "layout": fields of RowCounts, "flops_per_solution": {shape:
    FLOPs}}}}, each way with its usual setting. Compiled layers compute as much as others, and are left out."""
    models = {name: count_model_flops(ALL_SHAPES[name].config()) for name in shapes}
    solutions = sum(map(len, questions))
    counted = {}
    for name in ways:
        way = WAYS[name]
        if name == "compiled":
            continue
        rows = way.rows(list(way.batches(questions, way.usual)))
        counted[name] = {
            "title": way.title,
            "setting": way.usual,
            "layout": asdict(rows),
            "flops_per_solution": {
                shape: sum(scoring_flops(rows, model).values()) / solutions for shape, model in models.items()
            },
        }
    return {"workload": describe_workload(questions), "ways": counted}


def table(counted: dict[str, Any]) -> str:
    """Tokens and pairs of each way, then GFLOP per solution of each model and how many times fewer than published."""
    workload, ways = counted["workload"], counted["ways"]
    solutions = workload["trajectories"]
    base = ways.get("published")
    shapes = list(next(iter(ways.values()))["flops_per_solution"])
    rows = [["", "setting", "tokens", "attention pairs", "last-layer rows", *shapes]]
    for way in ways.values():
        tokens, pairs, rows_read = (way["layout"][key] / solutions for key in ("tokens", "pairs", "last_tokens"))
        cells = []
        for shape in shapes:
            flops = way["flops_per_solution"][shape]
            times = f" ({base['flops_per_solution'][shape] / flops:.2f}x)" if base else ""
            cells.append(f"{flops / 1e9:,.1f}{times}")
        setting = ", ".join(f"{name} {value}" for name, value in way["setting"].items())
        rows.append([way["title"], setting, f"{tokens:,.1f}", f"{pairs:,.0f}", f"{rows_read:,.1f}", *cells])
    return (
        "Counted, not measured: GFLOP to score a solution, and how many times fewer than published.\n"
        f"{solutions:,} made-up solutions ({solutions // workload['questions']} to a question), "
        f"{workload['tokens'] / solutions:,.1f} tokens on average, tree ratio {workload['tree_ratio']:.3f}\n"
        + aligned(rows, left=(0, 1))
    )
