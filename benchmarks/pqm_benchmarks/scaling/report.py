"""The simulation as text: tables by name, for the terminal and for docs/evidence/scaling-simulation.md."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from pqm_benchmarks.scaling.cases import (
    ACCUMULATIONS,
    BUDGET,
    BUDGETS,
    IDLE_SHAPES,
    MANY,
    NETWORK_SHAPES,
    RANKS,
    SHAPE,
)
from pqm_benchmarks.scaling.epoch import LAYOUTS
from pqm_benchmarks.scaling.network import WAYS
from pqm_benchmarks.shared.text import aligned

Results = dict[str, Any]
Row = dict[str, Any]

IN_SHORT = {"nodes": "all, nodes of 8", "alone": "all, nodes of 1", "hybrid": "a node of 8"}


def tables(results: Results) -> dict[str, str]:
    """{name: a table under a line that says what it shows}."""
    return {
        "workload": _workload(results),
        "ranks": _idle_by_ranks(results),
        "models": _idle_by_model(results),
        "epoch": _epoch(results),
        "planning": _planning(results),
        "network": _network_by_model(results),
        "network by ranks": _network_by_ranks(results),
        "network by tokens": _network_by_tokens(results),
    }


def one(rows: Iterable[Row], **wanted: Any) -> Row:
    """The only row with these values."""
    (found,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return found


def percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share >= 0.0995 else f"{100 * share:.2f}%"


def _titled(title: str, header: list[str], rows: list[list[str]], left: Sequence[int] = (0,)) -> str:
    return f"{title}\n{aligned([header, *rows], left=left)}"


def _workload(results: Results) -> str:
    rows = [
        [
            LAYOUTS[layout],
            f"{found['tokens']:,}",
            f"{found['micro_batches']:,}",
            percent(found["fill"]),
            f"{found['divided']:,}",
            f"{found['pairs_of_a_token']:.0f}",
        ]
        for layout, found in results["workload"].items()
    ]
    header = ["", "tokens to compute", "micro-batches", "filled", "questions divided", "pairs a token"]
    trajectories = results["workload"]["plain"]["trajectories"]
    return _titled(f"An epoch of {trajectories:,} trajectories in micro-batches of {BUDGET:,} tokens", header, rows)


def _idle(results: Results, shape: str, layout: str, accumulation: int, ranks: int, padded: bool = True) -> Row:
    return one(results["idle"], shape=shape, layout=layout, padded=padded, accumulation=accumulation, ranks=ranks)


def _idle_by_ranks(results: Results) -> str:
    cases = [(layout, accumulation) for layout in ("plain", "tree") for accumulation in ACCUMULATIONS[:3]]
    header = ["ranks", *(f"{layout} x {accumulation}" for layout, accumulation in cases)]
    rows = [
        [f"{ranks:,}", *(percent(_idle(results, SHAPE, *case, ranks)["idle"]) for case in cases)] for ranks in RANKS
    ]
    return _titled(f"Idle in full optimizer steps, {SHAPE}; x: accumulation", header, rows)


def _idle_by_model(results: Results) -> str:
    not_padded = (1, 4)
    header = ["", "least x 1", *(f"x {accumulation}" for accumulation in ACCUMULATIONS)]
    header += [f"not padded x {accumulation}" for accumulation in not_padded]
    rows = []
    for shape, layout in itertools.product(IDLE_SHAPES, LAYOUTS):
        found = [_idle(results, shape, layout, accumulation, MANY) for accumulation in ACCUMULATIONS]
        found += [_idle(results, shape, layout, accumulation, MANY, padded=False) for accumulation in not_padded]
        cells = [percent(found[0]["least"]), *(percent(row["idle"]) for row in found)]
        rows.append([f"{shape}, {LAYOUTS[layout]}", *cells])
    return _titled(
        f"Idle in full optimizer steps of {MANY:,} ranks; x: accumulation; least: what no packing of the same units\n"
        "can go below",
        header,
        rows,
    )


def _epoch(results: Results) -> str:
    header = ["", "ranks", "micro-batches", "rounds", "idle", "seconds"]
    header += ["evened: tokens", "idle", "seconds", "trajectories a step"]
    rows = []
    for row in results["epoch"]:
        given, evened = row["given"], row["evened"]
        rows.append(
            [
                LAYOUTS[row["layout"]],
                f"{row['ranks']:,}",
                f"{given['micro_batches']:,}",
                f"{given['rounds']:,}",
                percent(given["idle"]),
                f"{given['seconds']:,.1f}",
                f"{evened['tokens']:,}",
                percent(evened["idle"]),
                f"{evened['seconds']:,.1f}",
                f"{results['workload']['plain']['trajectories'] / evened['rounds']:,.0f}",
            ]
        )
    return _titled(
        f"A whole epoch, {SHAPE}, without communication or accumulation: micro-batches of {BUDGET:,} tokens;\n"
        "evened: of as many tokens as fill all of its rounds",
        header,
        rows,
    )


def _planning(results: Results) -> str:
    rows = [
        [LAYOUTS[layout], *(f"{seconds[part]:.3f}" for part in ("units", "batches", "deal"))]
        for layout, seconds in results["planning"].items()
    ]
    header = ["", "units, once", "micro-batches, each epoch", f"deal to {MANY:,} ranks"]
    return _titled(f"Seconds of planning, on one thread ({results['environment']['device']})", header, rows)


def _network_by_model(results: Results) -> str:
    found = {
        (shape, way): one(results["network"], shape=shape, way=way, ranks=MANY, tokens=BUDGET)
        for shape in NETWORK_SHAPES
        for way in WAYS
    }
    header = ["", "compute", "sharded over", "received", "through the card", "busy", "exposed", "kept"]
    rows = [
        [
            shape if way == "nodes" else "",
            f"{1e3 * row['compute']:,.0f} ms" if way == "nodes" else "",
            IN_SHORT[way],
            f"{row['received_bytes'] / 1e9:,.1f} GB",
            f"{row['network_bytes'] / 1e9:,.1f} GB",
            f"{1e3 * row['communication']:,.0f} ms",
            percent(row["exposed"]),
            f"{row['state_bytes'] / 1e9:,.1f} GB",
        ]
        for (shape, way), row in found.items()
    ]
    title = f"A round of {BUDGET:,} tokens on each of {MANY:,} ranks; sharded over"
    return _titled("\n".join([title, *_ways()]), header, rows, left=(0, 2))


def _ways() -> list[str]:
    return [f"  {IN_SHORT[way]}: {text}" for way, text in WAYS.items()]


def _network_by_ranks(results: Results) -> str:
    header = ["exposed", *(f"{ranks:,}" for ranks in RANKS)]
    rows = [
        _exposed(results, shape, way, [(ranks, BUDGET) for ranks in RANKS]) for shape in IDLE_SHAPES for way in WAYS
    ]
    return _titled(f"By ranks, micro-batches of {BUDGET:,} tokens; sharded over", header, rows)


def _network_by_tokens(results: Results) -> str:
    header = ["exposed", *(f"{tokens:,}" for tokens in BUDGETS)]
    rows = [_exposed(results, SHAPE, way, [(MANY, tokens) for tokens in BUDGETS]) for way in WAYS]
    return _titled(f"By tokens of a micro-batch, {MANY:,} ranks; sharded over", header, rows)


def _exposed(results: Results, shape: str, way: str, cases: list[tuple[int, int]]) -> list[str]:
    """A row of the exposed shares of rounds of (ranks, tokens)."""
    found = (one(results["network"], shape=shape, way=way, ranks=ranks, tokens=tokens) for ranks, tokens in cases)
    return [f"{shape}, {IN_SHORT[way]}", *(percent(round["exposed"]) for round in found)]
