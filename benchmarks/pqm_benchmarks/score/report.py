"""A score.json as text: rates and operations of every way, the target, and what is missing."""

from collections.abc import Iterator
from dataclasses import dataclass

from pqm_benchmarks.comparison import report
from pqm_benchmarks.comparison.report import (
    Columns,
    Record,
    Results,
    Targets,
    by_way,
    closing,
    computed_over_real,
    gib,
    padding,
    percent,
    settings,
    times,
)
from pqm_benchmarks.shared.text import short

SCORER_IN_TREES = "tree_rows"  # what Scorer computes with prefix_tree=True

COLUMNS: Columns = {
    "solutions/s": lambda row: short(row.record["solutions_per_s"]),
    "x published": lambda row: times(row.record, row.base, "solutions_per_s"),
    "batches made before": lambda row: short(row.record["ahead_solutions_per_s"]),
    "real tokens/s": lambda row: f"{row.record['real_tokens_per_s']:,.0f}",
    "computed tokens/s": lambda row: f"{row.record['computed_tokens_per_s']:,.0f}",
    "computed/real": computed_over_real,
    "GFLOP/solution": lambda row: short(row.record["flops_per_solution"] / 1e9, 4),
    "x fewer": lambda row: times(row.base, row.record, "flops"),
    "TFLOP/s": lambda row: short(row.record["tflops"]),
    "MFU": lambda row: percent(row.record["mfu"]),
    "peak GiB": lambda row: gib(row.record["peak_bytes"]),
    "setting": lambda row: settings(row.record),
}


@dataclass(frozen=True)
class Target:
    shape: str
    way: str
    times: float
    """Solutions/s of SCORER_IN_TREES over those of `way`."""


TARGETS = (Target("Qwen2.5-7B", "published", 8),)


def table(results: Results) -> str:
    """All results."""
    workload = f"(that of 22 solutions was set to {results['config']['tree_ratio']:g})"
    return report.table(results, workload, "published", COLUMNS, _targets(results), _notes(results))


def targets(results: Results) -> Targets:
    """The targets of the models that were measured."""
    judged = Targets(results)
    for target, ours, other in _measured_targets(results):
        faster = ours["solutions_per_s"] / other["solutions_per_s"]
        judged.add_times(f"{target.shape}: solutions/s", other, target.times, faster)
    return judged


def _targets(results: Results) -> str:
    notes = []
    for _, ours, other in _measured_targets(results):
        faster, fewer = ours["solutions_per_s"] / other["solutions_per_s"], other["flops"] / ours["flops"]
        notes.append(
            f"{fewer:.2f}x of it is fewer operations, {faster / fewer:.2f}x more of them a second; batches are made "
            "within the time"
        )
    return targets(results).text(*notes)


def _measured_targets(results: Results) -> Iterator[tuple[Target, Record, Record]]:
    """(target, our record, the record of the way that it is compared with)."""
    for target in TARGETS:
        ways = by_way(results, target.shape)
        if SCORER_IN_TREES in ways and target.way in ways:
            yield target, ways[SCORER_IN_TREES], ways[target.way]


def _notes(results: Results) -> list[str]:
    records = results["records"]
    lines = [
        "Time is from token ids to scores on the host: batches are made while the device works. Everything that a way "
        "computes counts, padding and vocabulary logits included. A real token counts once for each solution that "
        "contains it."
    ]
    for shape in dict.fromkeys(record["shape"] for record in records):
        of_shape = [record for record in records if record["shape"] == shape]
        errors = [record["error"] for record in of_shape]
        lines.append(
            f"scores, {shape}: relative error {min(errors):.2g} to {max(errors):.2g}; transformers' own model, one "
            f"solution at a time: {of_shape[0]['error_alone']:.2g}"
        )
    return [*lines, *padding(records, "solutions"), *closing(results, lambda record: record["source"])]
