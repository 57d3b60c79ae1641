"""What a score.json says, as text: rates and operations of every way, the target, and what is missing."""

from dataclasses import dataclass

from pqm_benchmarks.comparison_report import (
    Results,
    Targets,
    by_way,
    gib,
    heading,
    left_out,
    noise,
    padding,
    percent,
    settings,
)
from pqm_benchmarks.report import aligned, short

OWN = "tree_rows"  # what Scorer does with prefix_tree=True

COLUMNS = (
    "solutions/s", "x published", "batches made before", "real tokens/s", "computed tokens/s", "computed/real",
    "GFLOP/solution", "x fewer", "TFLOP/s", "MFU", "peak GiB", "setting",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    shape: str
    way: str
    times: float
    """Solutions/s of OWN over those of `way`."""


TARGETS = (Target("Qwen2.5-7B", "published", 8),)


def table(results: Results) -> str:
    """Everything measured."""
    shapes = dict.fromkeys(record["shape"] for record in results["records"])
    workload = f"(that of 22 solutions was set to {results['config']['tree_ratio']:g})"
    grids = (_grid(results, shape) for shape in shapes)
    parts = [heading(results, workload), *grids, _targets(results), _notes(results)]
    return "\n\n".join(part for part in parts if part)


def _grid(results: Results, shape: str) -> str:
    ways = by_way(results, shape)
    rows = [["", *COLUMNS]]
    base = ways.get("published")
    for record in ways.values():
        rows.append(
            [
                record["title"],
                short(record["solutions_per_s"]),
                f"{record['solutions_per_s'] / base['solutions_per_s']:.2f}" if base else "-",
                short(record["ahead_solutions_per_s"]),
                f"{record['real_tokens_per_s']:,.0f}",
                f"{record['computed_tokens_per_s']:,.0f}",
                f"{record['computed_tokens'] / results['workload']['tokens']:.2f}",
                short(record["flops_per_solution"] / 1e9, 4),
                f"{base['flops'] / record['flops']:.2f}" if base else "-",
                short(record["tflops"]),
                percent(record["mfu"]),
                gib(record["peak_bytes"]),
                settings(record),
            ]
        )
    parameters = next(iter(ways.values()))["non_embedding"] / 1e9
    return f"{shape}, {parameters:,.3f}e9 parameters without embeddings\n{aligned(rows, left=(0, len(COLUMNS)))}"


def _targets(results: Results) -> str:
    found, notes = Targets(results), []
    for target in TARGETS:
        ways = by_way(results, target.shape)
        if OWN in ways and target.way in ways:
            own, other = ways[OWN], ways[target.way]
            times = own["solutions_per_s"] / other["solutions_per_s"]
            text = f"{target.shape}: solutions/s, times those of {other['title']}"
            found.add(text, f">= {target.times:g}x", f"{times:.2f}x", times >= target.times)
            fewer = other["flops"] / own["flops"]
            notes.append(
                f"{fewer:.2f}x of it is fewer operations, {times / fewer:.2f}x more of them a second; batches are made "
                "within the time"
            )
    return found.text(*notes)


def _notes(results: Results) -> str:
    records = results["records"]
    lines = [
        "Time is from token ids to scores on the host: batches are made while the device works. What every way "
        "computes counts, its padding and its vocabulary logits too. A real token counts once for each solution that "
        "has it."
    ]
    for shape in dict.fromkeys(record["shape"] for record in records):
        own = [record for record in records if record["shape"] == shape]
        errors = [record["error"] for record in own]
        lines.append(
            f"scores, {shape}: relative error {min(errors):.2g} to {max(errors):.2g}; transformers' own model, one "
            f"solution at a time: {own[0]['error_alone']:.2g}"
        )
    lines += padding(records, "solutions")
    lines += noise(records)
    lines += dict.fromkeys(f"{record['title']}: {record['source']}" for record in records)
    return "\n".join([*lines, *left_out(results)])
