"""What a file of `comparison.py` says, as text, whatever was compared."""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

from pqm_benchmarks.shared.report import DEVICE, aligned, short
from pqm_fast.errors import PQMError

Record = dict[str, Any]
Results = dict[str, Any]


def merge(files: dict[str, Results]) -> Results:
    """Results of runs of different models or ways as one. Raises PQMError if they cannot be compared."""
    (first, merged), *others = files.items()
    merged = merged | {"records": list(merged["records"]), "failed": list(merged["failed"])}
    for path, results in others:
        for what in ("environment", "workload", "dtype"):
            if results[what] != merged[what]:
                raise PQMError(f"{path}: another {what} than in {first}; only runs that are alike go together")
        known = {(record["shape"], record["title"]) for record in merged["records"]}
        twice = [f"{r['title']} of {r['shape']}" for r in results["records"] if (r["shape"], r["title"]) in known]
        if twice:
            raise PQMError(f"{path}: {', '.join(twice)}: measured in another of the files too; leave one out")
        merged["records"] += results["records"]
        merged["failed"] += results["failed"]
        merged["matrix_tflops_rounds"] = merged["matrix_tflops_rounds"] + results["matrix_tflops_rounds"]
    merged["matrix_tflops"] = statistics.mean(merged["matrix_tflops_rounds"])
    for record in merged["records"]:
        record["of_matrix_rate"] = record["tflops"] / merged["matrix_tflops"]
    return merged


def by_way(results: Results, shape: str) -> dict[str, Record]:
    """The records of a model, in the order in which they were timed."""
    return {record["way"]: record for record in results["records"] if record["shape"] == shape}


class Row(NamedTuple):
    """What a line of a grid is made from."""

    record: Record
    base: Record | None
    """Of the way that the others are compared with, if it was measured in the same model."""
    results: Results


Columns = dict[str, Callable[[Row], str]]
"""What is in a cell, by heading."""


def table(results: Results, workload: str, base: str, columns: Columns, targets: str, notes: list[str]) -> str:
    """Everything measured: a grid for each model with a line for each way, compared with the way `base`. `workload`
    says what more there is to say of the made-up trajectories."""
    shapes = dict.fromkeys(record["shape"] for record in results["records"])
    grids = (_grid(results, shape, base, columns) for shape in shapes)
    parts = [_heading(results, workload), *grids, targets, "\n".join(notes)]
    return "\n\n".join(part for part in parts if part)


def _heading(results: Results, workload: str) -> str:
    """Device, versions and precision."""
    environment, described, peak = results["environment"], results["workload"], results["peak"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    named = (
        f"MFU is of {peak['tflops']:,.0f} TFLOP/s, dense bfloat16 peak of {peak['name']}" if peak else "no peak known"
    )
    lines = [
        f"{environment['device']}; {versions}; commit {environment['commit'] or 'unknown'}",
        f"{results['dtype']}; {named}; large matrix product measured here: {results['matrix_tflops']:,.0f} TFLOP/s"
        if results["device"] == "cuda"
        else "Measured on a CPU, in float32: these are NOT figures of a GPU, and say that it works, no more.",
        f"{described['trajectories']:,} made-up trajectories "
        f"({described['questions']} questions, {described['trajectories'] // described['questions']} solutions each), "
        f"{described['tokens'] / described['trajectories']:,.1f} tokens on average, tree ratio "
        f"{described['tree_ratio']:.2f} {workload}",
    ]
    return "\n".join(lines)


def _grid(results: Results, shape: str, base: str, columns: Columns) -> str:
    ways = by_way(results, shape)
    rows = [["", *columns]]
    for record in ways.values():
        row = Row(record, ways.get(base), results)
        rows.append([record["title"], *(cell(row) for cell in columns.values())])
    parameters = next(iter(ways.values()))["non_embedding"] / 1e9
    return f"{shape}, {parameters:,.3f}e9 parameters without embeddings\n{aligned(rows, left=(0, len(columns)))}"


# ---- cells ----------------------------------------------------------------------------------------------------------


def times(above: Record | None, below: Record | None, figure: str) -> str:
    """How many times the same figure of another way."""
    return f"{above[figure] / below[figure]:.2f}" if above and below else "-"


def computed_over_real(row: Row) -> str:
    return f"{row.record['computed_tokens'] / row.results['workload']['tokens']:.2f}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def gib(amount: int | None) -> str:
    return f"{amount / 2**30:,.1f}" if amount else "-"


def settings(record: Record) -> str:
    """The setting that was chosen, and the notes."""
    notes = {name: round(value, 2) for name, value in record["notes"].items()}
    return ", ".join(f"{name} {value}" for name, value in (record["setting"] | notes).items())


# ---- targets and notes ----------------------------------------------------------------------------------------------


class Targets:
    """Each target beside what was measured; judged on the device that they were set for, and only there."""

    def __init__(self, results: Results):
        self.device = results["environment"]["device"]
        self.rows: list[list[str]] = []

    def add(self, text: str, bound: str, measured: str, met: bool) -> None:
        judged = self.device.startswith(DEVICE)
        self.rows.append([text, bound, measured, ("met" if met else "NOT MET") if judged else "not judged"])

    def add_times(self, rate: str, other: Record, bound: float, measured: float) -> None:
        """Of our `rate` over that of another way."""
        self.add(f"{rate}, times those of {other['title']}", f">= {bound:g}x", f"{measured:.2f}x", measured >= bound)

    def text(self, *notes: str) -> str:
        """Nothing if there is no target for what was measured."""
        if not self.rows:
            return ""
        grid = aligned([["target", "", "measured", ""], *self.rows], left=(0, 3))
        return "\n".join([f"targets, set for one {DEVICE}; measured on {self.device}", grid, *notes])


def padding(records: list[Record], what: str) -> list[str]:
    """What ways that batch `what` of like length would do with a whole data set to choose from."""
    return [
        f"{record['title']}, {record['shape']}: out of so few {what}, batches of like length are padded "
        f"{record['excess']:.2f} times as much as out of thousands; with that, and as many computed tokens/s, it would "
        f"do {short(record[f'{what}_per_s'] * record['excess'])} {what}/s"
        for record in records
        if record["excess"] > 1
    ]


def closing(results: Results, source: Callable[[Record], str]) -> list[str]:
    """The last notes: noise, what each way is (`source` says it of a record), and what is missing."""
    ways = dict.fromkeys(f"{record['title']}: {source(record)}" for record in results["records"])
    missing = (f"left out: {f['way']}, {f['shape']} ({f['why']})" for f in results["failed"])
    return [*_noise(results["records"]), *ways, *missing]


def _noise(records: list[Record]) -> list[str]:
    """How far the rounds of a way differ: a line, or none for a single round."""
    spread = []
    for record in records:
        rounds = [statistics.median(laps) for laps in record["lap_seconds"]]
        spread.append((max(rounds) - min(rounds)) / statistics.mean(rounds))
    if not any(len(record["lap_seconds"]) > 1 for record in records):
        return []
    return [f"noise: rounds differ by {statistics.median(spread):.1%} (median), {max(spread):.1%} (worst)"]
