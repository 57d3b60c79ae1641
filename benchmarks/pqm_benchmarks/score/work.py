"""The operations of scoring, counted from the batches that each way makes; no model is computed, no GPU needed."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pqm_benchmarks.shared.report import aligned
from pqm_benchmarks.work.run import FORWARD_PRODUCTS, Layout, Products

if TYPE_CHECKING:
    from pqm_benchmarks.train.ways.way import Questions


def forward(layout: Layout, products: Products) -> dict[str, int]:
    """FLOPs of the whole workload, forward alone, by part. Of the three products that a weight takes part in, forward
    is one."""
    pairs = products.depth * layout.pairs
    saved = (layout.tokens - layout.last_tokens) * products.last_rows
    return {
        "layers": (layout.tokens * products.layers - saved) // 3,
        "attention": FORWARD_PRODUCTS * products.pair * pairs,
        "heads": layout.scored * products.value // 3 + (layout.tokens * products.logits if layout.logits else 0),
    }


def count(questions: "Questions", ways: Sequence[str], shapes: Sequence[str]) -> dict[str, Any]:
    """{"workload", "ways": {way: {"title", "setting", "layout", "flops_per_solution": {shape: FLOPs}}}}, each way with
    its usual setting. Compiled layers compute what the others do, and are left out."""
    from pqm_benchmarks.score.ways import WAYS
    from pqm_benchmarks.shared.comparison import describe_workload
    from pqm_benchmarks.shared.shapes import EVERY
    from pqm_benchmarks.work.run import count_products

    products = {name: count_products(EVERY[name].config()) for name in shapes}
    solutions = sum(map(len, questions))
    counted = {}
    for name in ways:
        way = WAYS[name]
        if name == "compiled":
            continue
        layout = way.layout(list(way.batches(questions, way.usual)))
        counted[name] = {
            "title": way.title,
            "setting": way.usual,
            "layout": asdict(layout),
            "flops_per_solution": {
                shape: sum(forward(layout, own).values()) / solutions for shape, own in products.items()
            },
        }
    return {"workload": describe_workload(questions), "ways": counted}


def table(counted: dict[str, Any]) -> str:
    """Tokens and pairs of each way, then GFLOP per solution of each model and how many times less that is."""
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
