"""What a kernels.json says, as text: tables, and how far each target is met."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
Results = dict[str, Any]

DEVICE = "NVIDIA H200"  # the targets are for one, and judged there alone

NAMES = {
    "published": "published code",
    "eager": "eager PyTorch",
    "compiled": "torch.compile",
    "fused": "pqm-fast",
    "fused-sorting": "pqm-fast without index",
}


@dataclass(frozen=True)
class Target:
    """A figure to reach with `fused`, at every width, with and without norm. They were set for one H200."""

    text: str
    sizes: tuple[str, ...]
    passes: tuple[str, ...]
    value: Callable[[Record, dict[str, Record]], float]
    """From the record of `fused` and those of all implementations of the same case, by name."""
    bound: float
    at_least: bool
    unit: str
    needs: str = "fused"
    """The implementation that it compares with."""


TARGETS = (
    Target(
        "bandwidth size, forward: of copy bandwidth",
        ("bandwidth",), ("forward",), lambda own, _: own["percent_of_copy"], 88, True, "%",
    ),
    Target(
        "bandwidth size, forward + backward: of the byte floor's rate",
        ("bandwidth",), ("forward+backward",), lambda own, _: own["percent_of_copy"], 85, True, "%",
    ),
    Target(
        "training size, forward + backward: wall time, times faster than the published code",
        ("training",), ("forward+backward",), lambda own, all: all["published"]["wall_us"] / own["wall_us"], 5, True,
        "x", "published",
    ),
    Target(
        "training size, forward + backward: wall time, times faster than torch.compile",
        ("training",), ("forward+backward",), lambda own, all: all["compiled"]["wall_us"] / own["wall_us"], 2, True,
        "x", "compiled",
    ),
    Target(
        "training size: GPU time over 1.25 x byte floor",
        ("training",), ("forward", "forward+backward"), lambda own, _: own["gpu_us"] - 1.25 * own["floor_us"], 8, False,
        " us",
    ),
    Target(
        "extra memory over outputs, 16 bytes a step and 4 a trajectory",
        ("training", "bandwidth"), ("forward", "forward+backward"),
        lambda own, _: (own["extra_bytes"] - 16 * own["steps"] - 4 * own["trajectories"]) / 2**20, 1, False, " MiB",
    ),
)  # fmt: skip


def table(results: Results) -> str:
    """Everything measured: times, distance to the byte floor, memory, targets, noise, and what is missing."""
    records = results["records"]
    on_gpu = results["device"] == "cuda"
    parts = [_heading(results)]
    for size in dict.fromkeys(record["size"] for record in records):
        own = [record for record in records if record["size"] == size]
        what = f"{size}: {own[0]['rows']:,} rows, {own[0]['steps']:,} steps, {own[0]['trajectories']:,} trajectories"
        if on_gpu:
            parts.append(_grid(own, f"{what}; GPU time, us", lambda r: f"{r['gpu_us']:,.1f}", floor=True))
        parts.append(_grid(own, f"{what}; wall time with launches, us", lambda r: f"{r['wall_us']:,.1f}"))
        title = f"{what}; the fewest bytes over that time, GB/s (% of copy bandwidth, which is the byte floor's rate)"
        parts.append(_grid(own, title, _rate))
        if on_gpu:
            parts.append(_grid(own, f"{what}; extra memory, MiB", lambda r: f"{r['extra_bytes'] / 2**20:,.3f}"))
    if on_gpu:
        parts.append(targets(results))
    return "\n\n".join([*parts, _notes(results)])


def targets(results: Results) -> str:
    """Each target beside the worst case of this run; nothing where this run has no such case."""
    rows = [["target", "", "worst here", "at", ""]]
    rows += [
        [text, bound, *measured.split(" at ", 1), verdict] for text, bound, measured, verdict in found_targets(results)
    ]
    device = results["environment"]["device"]
    return f"targets, set for one {DEVICE}; measured on {device}\n" + aligned(rows, left=(0, 3, 4))


def found_targets(results: Results) -> list[list[str]]:
    """[target, bound, worst case measured and where, verdict] of each target that this run has a case of."""
    rows = []
    for target in TARGETS:
        found = []
        for case in _cases(results["records"]):
            own = case.get("fused")
            if own and target.needs in case and own["size"] in target.sizes and own["pass"] in target.passes:
                found.append((target.value(own, case), own))
        if found:
            value, worst = (min if target.at_least else max)(found, key=lambda pair: pair[0])
            met = value >= target.bound if target.at_least else value <= target.bound
            judged = results["environment"]["device"].startswith(DEVICE)
            verdict = ("met" if met else "NOT MET") if judged else "not judged"
            sign = ">=" if target.at_least else "<="
            where = ", ".join(_case_name(worst)) + (f", {worst['size']}" if len(target.sizes) > 1 else "")
            bound, shown = f"{sign} {target.bound}{target.unit}", f"{value:,.2f}{target.unit}"
            rows.append([target.text, bound, f"{shown} at {where}", verdict])
    return rows


def _heading(results: Results) -> str:
    environment = results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    lines = [
        f"{environment['device']}; {versions}; commit {environment['commit'] or 'unknown'}",
        f"{results['dtype']}; copy bandwidth {results['copy_gb_s']:,.1f} GB/s, read plus written",
    ]
    if results["device"] != "cuda":
        lines.append(
            "Measured on a CPU: these are NOT figures of a GPU, and times of Triton's interpreter say nothing."
        )
    return "\n".join(lines)


def _grid(records: Sequence[Record], title: str, show: Callable[[Record], str], floor: bool = False) -> str:
    """A line for each case, a column for each implementation."""
    names = [name for name in NAMES if any(record["implementation"] == name for record in records)]
    rows = [["D", "loss", "norm", "pass", *(["byte floor"] if floor else []), *(NAMES[name] for name in names)]]
    for case in _cases(records):
        some = next(iter(case.values()))
        start = [*_case_name(some), *([f"{some['floor_us']:,.1f}"] if floor else [])]
        rows.append([*start, *(show(case[name]) if name in case else "-" for name in names)])
    return f"{title}\n{aligned(rows, left=(1, 2, 3))}"


def _notes(results: Results) -> str:
    records = results["records"]
    lines = []
    for kind in ("gpu", "wall"):
        rounds = [record[f"{kind}_us_rounds"] for record in records if record[f"{kind}_us_rounds"]]
        spread = [100 * abs(a - b) / (a + b) * 2 for a, b in rounds]
        if spread:
            lines.append(
                f"noise: two rounds of the same implementation differ in {kind.upper() if kind == 'gpu' else kind} "
                f"time by {statistics.median(spread):.1f}% (median), {max(spread):.1f}% (worst)"
            )
    if results["device"] == "cuda":
        step_rows = {
            (r["size"], r["width"]): r["inputs_in_turn"] * r["floor_bytes"] for r in records if r["pass"] == "forward"
        }
        for (size, width), together in step_rows.items():
            if together < 2 * results["l2_bytes"]:
                lines.append(
                    f"{size}, D {width}: not cold, step rows are {together / results['l2_bytes']:.1f} times the L2"
                )
    no_graph = dict.fromkeys((r["implementation"], r["why_no_graph"]) for r in records if r["why_no_graph"])
    lines += [f"{NAMES[name]}: no CUDA graph, timed between events ({why})" for name, why in no_graph]
    lines += [f"left out: {name} ({why})" for name, why in results["left_out"].items()]
    return "\n".join(lines)


def _cases(records: Sequence[Record]) -> list[dict[str, Record]]:
    """Records of the same batch and pass, by implementation."""
    cases: dict[tuple, dict[str, Record]] = {}
    for record in records:
        key = tuple(record[name] for name in ("size", "loss", "norm", "pass", "width"))
        cases.setdefault(key, {})[record["implementation"]] = record
    return list(cases.values())


def _case_name(record: Record) -> list[str]:
    norm = "norm" if record["norm"] else "no norm"
    return [str(record["width"]), record["loss"], norm, record["pass"].replace("+", " + ")]


def _rate(record: Record) -> str:
    return f"{short(record['gb_s'])} ({short(record['percent_of_copy'])})"


def short(value: float, digits: int = 3) -> str:
    """So many digits, or all those before the point."""
    return f"{value:,.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        shown = [cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(cells)]
        lines.append("  ".join(shown).rstrip())
    return "\n".join(lines)
