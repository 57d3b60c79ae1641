"""The results of a comparison as text, whatever was compared."""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

from pqm_benchmarks.shared.targets import TARGET_DEVICE, verdict
from pqm_benchmarks.shared.text import aligned, measured_on, short
from pqm_fast.errors import PQMError

Record = dict[str, Any]
Results = dict[str, Any]


def merge(files: dict[str, Results]) -> Results:
    """Merges the results of several runs, by file name. They are of different models or ways under equal conditions.

    Raises:
        PQMError: the conditions differ, or two files have the same way of the same model.
    """
    (first, merged), *others = files.items()
    merged = merged | {"records": list(merged["records"]), "failed": list(merged["failed"])}
    for path, results in others:
        for condition in ("environment", "workload", "dtype"):
            if results[condition] != merged[condition]:
                raise PQMError(f"{path}: another {condition} than in {first}; only runs that are alike go together")
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
    """The records of a model, in the order of the results."""
    return {record["way"]: record for record in results["records"] if record["shape"] == shape}


class Row(NamedTuple):
    """The data of one line of a grid."""

    record: Record
    base: Record | None
    """The record of the way that all ways are compared with, if it was measured with the same model."""
    results: Results


Columns = dict[str, Callable[[Row], str]]
"""Makes the text of a cell, by heading."""


def table(results: Results, workload: str, base: str, columns: Columns, targets: str, notes: list[str]) -> str:
    """All results: for each model a grid with a line for each way, compared with the way `base`. `workload` is put
    after the description of the made-up trajectories."""
    shapes = dict.fromkeys(record["shape"] for record in results["records"])
    grids = (_grid(results, shape, base, columns) for shape in shapes)
    parts = [_heading(results, workload), *grids, targets, "\n".join(notes)]
    return "\n\n".join(part for part in parts if part)


def _heading(results: Results, workload: str) -> str:
    """Device, versions, precision and data."""
    described, peak = results["workload"], results["peak"]
    peak_text = (
        f"MFU is of {peak['tflops']:,.0f} TFLOP/s, dense bfloat16 peak of {peak['name']}" if peak else "no peak known"
    )
    lines = [
        measured_on(results["environment"]),
        f"{results['dtype']}; {peak_text}; large matrix product measured here: {results['matrix_tflops']:,.0f} TFLOP/s"
        if results["device"] == "cuda"
        else "Measured on a CPU, in float32: these are NOT figures of a GPU, and only show that it works.",
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
    """`figure` of one record over that of another."""
    return f"{above[figure] / below[figure]:.2f}" if above and below else "-"


def computed_over_real(row: Row) -> str:
    return f"{row.record['computed_tokens'] / row.results['workload']['tokens']:.2f}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def gib(amount: int | None) -> str:
    return f"{amount / 2**30:,.1f}" if amount else "-"


def settings(record: Record) -> str:
    """The setting that was chosen, and the notes on it."""
    notes = {name: round(value, 2) for name, value in record["notes"].items()}
    return ", ".join(f"{name} {value}" for name, value in (record["setting"] | notes).items())


# ---- targets and notes ----------------------------------------------------------------------------------------------


class Targets:
    """Each target beside the measured figure."""

    def __init__(self, results: Results):
        self.device = results["environment"]["device"]
        self.rows: list[list[str]] = []
        """[target, bound, measured figure, verdict] each."""

    def add(self, text: str, bound: str, measured: str, met: bool) -> None:
        self.rows.append([text, bound, measured, verdict(met, self.device)])

    def add_times(self, rate: str, other: Record, bound: float, measured: float) -> None:
        """Adds a target for our `rate` over that of another way."""
        self.add(f"{rate}, times those of {other['title']}", f">= {bound:g}x", f"{measured:.2f}x", measured >= bound)

    def text(self, *notes: str) -> str:
        """The targets as a table, then the notes; empty if there is no target for what was measured."""
        if not self.rows:
            return ""
        grid = aligned([["target", "", "measured", ""], *self.rows], left=(0, 3))
        return "\n".join([f"targets, set for one {TARGET_DEVICE}; measured on {self.device}", grid, *notes])


def padding(records: list[Record], unit: str) -> list[str]:
    """The rates that ways with batches of similar length would reach if they chose from a whole data set. `unit` is
    "trajectories" or "solutions"."""
    return [
        f"{record['title']}, {record['shape']}: out of so few {unit}, batches of similar length are padded "
        f"{record['excess']:.2f} times as much as out of thousands; with less padding and as many computed tokens/s it "
        f"would reach {short(record[f'{unit}_per_s'] * record['excess'])} {unit}/s"
        for record in records
        if record["excess"] > 1
    ]


def closing(results: Results, source: Callable[[Record], str]) -> list[str]:
    """The last notes: the noise, what each way is (`source` of its record), and what is missing."""
    ways = dict.fromkeys(f"{record['title']}: {source(record)}" for record in results["records"])
    missing = (f"left out: {f['way']}, {f['shape']} ({f['why']})" for f in results["failed"])
    return [*_noise(results["records"]), *ways, *missing]


def _noise(records: list[Record]) -> list[str]:
    """One line that says how far the rounds of a way differ, or no line for a single round."""
    spread = []
    for record in records:
        rounds = [statistics.median(laps) for laps in record["lap_seconds"]]
        spread.append((max(rounds) - min(rounds)) / statistics.mean(rounds))
    if not any(len(record["lap_seconds"]) > 1 for record in records):
        return []
    return [f"noise: rounds differ by {statistics.median(spread):.1%} (median), {max(spread):.1%} (worst)"]
