"""A kernels.json as text: tables of the timings, and how far each target is met."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pqm_benchmarks.shared.targets import TARGET_DEVICE, verdict
from pqm_benchmarks.shared.text import aligned, measured_on, short

Record = dict[str, Any]
Results = dict[str, Any]

NAMES = {
    "published": "published code",
    "eager": "eager PyTorch",
    "compiled": "torch.compile",
    "fused": "pqm-fast",
    "fused-sorting": "pqm-fast without index",
}


@dataclass(frozen=True)
class Target:
    """A figure that `fused` has to reach at every width, with and without norm."""

    text: str
    sizes: tuple[str, ...]
    passes: tuple[str, ...]
    value: Callable[[Record, dict[str, Record]], float]
    """Computes the figure from the record of `fused` and those of all implementations of the same case, by name."""
    bound: float
    at_least: bool
    unit: str
    needs: str = "fused"
    """The implementation that `fused` is compared with."""


TARGETS = (
    Target(
        text="bandwidth size, forward: of copy bandwidth",
        sizes=("bandwidth",),
        passes=("forward",),
        value=lambda fused, _: fused["percent_of_copy"],
        bound=88,
        at_least=True,
        unit="%",
    ),
    Target(
        text="bandwidth size, forward + backward: of the byte floor's rate",
        sizes=("bandwidth",),
        passes=("forward+backward",),
        value=lambda fused, _: fused["percent_of_copy"],
        bound=85,
        at_least=True,
        unit="%",
    ),
    Target(
        text="training size, forward + backward: wall time, times faster than the published code",
        sizes=("training",),
        passes=("forward+backward",),
        value=lambda fused, case: case["published"]["wall_us"] / fused["wall_us"],
        bound=5,
        at_least=True,
        unit="x",
        needs="published",
    ),
    Target(
        text="training size, forward + backward: wall time, times faster than torch.compile",
        sizes=("training",),
        passes=("forward+backward",),
        value=lambda fused, case: case["compiled"]["wall_us"] / fused["wall_us"],
        bound=2,
        at_least=True,
        unit="x",
        needs="compiled",
    ),
    Target(
        text="training size: GPU time over 1.25 x byte floor",
        sizes=("training",),
        passes=("forward", "forward+backward"),
        value=lambda fused, _: fused["gpu_us"] - 1.25 * fused["floor_us"],
        bound=8,
        at_least=False,
        unit=" us",
    ),
    Target(
        text="extra memory over outputs, 16 bytes a step and 4 a trajectory",
        sizes=("training", "bandwidth"),
        passes=("forward", "forward+backward"),
        value=lambda fused, _: (fused["extra_bytes"] - 16 * fused["steps"] - 4 * fused["trajectories"]) / 2**20,
        bound=1,
        at_least=False,
        unit=" MiB",
    ),
)


def table(results: Results) -> str:
    """All results: times, distance from the byte floor, memory, targets, noise, and what is missing."""
    records = results["records"]
    on_gpu = results["device"] == "cuda"
    parts = [_heading(results)]
    for size in dict.fromkeys(record["size"] for record in records):
        of_size = [record for record in records if record["size"] == size]
        first = of_size[0]
        batch = f"{size}: {first['rows']:,} rows, {first['steps']:,} steps, {first['trajectories']:,} trajectories"
        if on_gpu:
            parts.append(_grid(of_size, f"{batch}; GPU time, us", lambda r: f"{r['gpu_us']:,.1f}", floor=True))
        parts.append(_grid(of_size, f"{batch}; wall time with launches, us", lambda r: f"{r['wall_us']:,.1f}"))
        title = f"{batch}; the fewest bytes over that time, GB/s (% of copy bandwidth, which is the byte floor's rate)"
        parts.append(_grid(of_size, title, _rate))
        if on_gpu:
            parts.append(_grid(of_size, f"{batch}; extra memory, MiB", lambda r: f"{r['extra_bytes'] / 2**20:,.3f}"))
    if on_gpu:
        parts.append(targets(results))
    return "\n\n".join([*parts, _notes(results)])


def targets(results: Results) -> str:
    """Each target beside the worst case of this run, as a table."""
    rows = [["target", "", "worst here", "at", ""]]
    rows += [
        [text, bound, *worst_case.split(" at ", 1), judgement]
        for text, bound, worst_case, judgement in target_rows(results)
    ]
    device = results["environment"]["device"]
    return f"targets, set for one {TARGET_DEVICE}; measured on {device}\n" + aligned(rows, left=(0, 3, 4))


def target_rows(results: Results) -> list[list[str]]:
    """[target, bound, worst case and where it was measured, verdict] of each target that this run has a case of."""
    rows = []
    for target in TARGETS:
        measured = []
        for case in _cases(results["records"]):
            fused = case.get("fused")
            if fused and target.needs in case and fused["size"] in target.sizes and fused["pass"] in target.passes:
                measured.append((target.value(fused, case), fused))
        if measured:
            value, worst = (min if target.at_least else max)(measured, key=lambda pair: pair[0])
            met = value >= target.bound if target.at_least else value <= target.bound
            sign = ">=" if target.at_least else "<="
            where = ", ".join(_case_name(worst)) + (f", {worst['size']}" if len(target.sizes) > 1 else "")
            bound, shown = f"{sign} {target.bound}{target.unit}", f"{value:,.2f}{target.unit}"
            judgement = verdict(met, results["environment"]["device"])
            rows.append([target.text, bound, f"{shown} at {where}", judgement])
    return rows


def _heading(results: Results) -> str:
    lines = [
        measured_on(results["environment"]),
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
