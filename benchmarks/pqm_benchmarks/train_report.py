"""What a train.json says, as text: rates of every way, targets, how long Math-Shepherd would take, what is missing."""

import statistics
from dataclasses import dataclass
from typing import Any

from pqm_benchmarks.report import _aligned as aligned
from pqm_benchmarks.report import short
from pqm_fast.errors import PQMError

Record = dict[str, Any]
Results = dict[str, Any]

OWN = "all"  # the way with every switch on
DEVICE = "NVIDIA H200"  # the targets are for one
# Math-Shepherd as the published code trains on it: two epochs, and how its users' log says that went
# (WindyLee0822/Process_Q_Model, issue 7). How many GPUs that was the log does not say.
EPOCHS, TRAJECTORIES, PUBLISHED_STEPS, PUBLISHED_SECONDS = 2, 889_106, 532, 15.3
HOURS = 4.0
HEADLINE = "Qwen2.5-7B"

COLUMNS = (
    "trajectories/s", "x published", "real tokens/s", "computed/real", "TFLOP/s", "MFU", "of matrix rate", "peak GiB",
    "setting",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    shape: str
    mfu: float
    """Of `all`, on what it computes."""
    times: dict[str, float]
    """Trajectories/s of `all` over those that another way would have with a whole data set to batch."""


TARGETS = (
    Target("Qwen2.5-0.5B", 0.42, {"reference": 6, "trl": 3}),
    Target("Qwen2.5-1.5B", 0.52, {"reference": 6, "trl": 3}),
    Target("Qwen2.5-7B", 0.57, {"reference": 5, "trl": 2.5}),
)


def table(results: Results) -> str:
    """Everything measured."""
    shapes = dict.fromkeys(record["shape"] for record in results["records"])
    parts = [_heading(results), *(_grid(results, shape) for shape in shapes), _targets(results), _notes(results)]
    return "\n\n".join(part for part in parts if part)


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
    """The records of a model, in the order of the ladder."""
    return {record["way"]: record for record in results["records"] if record["shape"] == shape}


def _heading(results: Results) -> str:
    environment, config, workload = results["environment"], results["config"], results["workload"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    peak = results["peak"]
    named = (
        f"MFU is of {peak['tflops']:,.0f} TFLOP/s, dense bfloat16 peak of {peak['name']}" if peak else "no peak known"
    )
    lines = [
        f"{environment['device']}; {versions}; commit {environment['commit'] or 'unknown'}",
        f"{results['dtype']}; {named}; large matrix product measured here: {results['matrix_tflops']:,.0f} TFLOP/s"
        if results["device"] == "cuda"
        else "Measured on a CPU, in float32: these are NOT figures of a GPU, and say that it works, no more.",
        f"{workload['trajectories']:,} made-up trajectories ({workload['questions']} questions, 22 solutions each), "
        f"{workload['tokens'] / workload['trajectories']:,.1f} tokens on average, tree ratio "
        f"{workload['tree_ratio']:.2f} (set, not measured); {config['questions'] * 22} in an optimizer step",
    ]
    return "\n".join(lines)


def _grid(results: Results, shape: str) -> str:
    ways = by_way(results, shape)
    rows = [["", *COLUMNS]]
    base = ways.get("reference")
    for record in ways.values():
        memory = record["peak_bytes"]
        rows.append(
            [
                record["title"],
                short(record["trajectories_per_s"]),
                f"{record['trajectories_per_s'] / base['trajectories_per_s']:.2f}" if base else "-",
                f"{record['real_tokens_per_s']:,.0f}",
                f"{record['computed_tokens'] / results['workload']['tokens']:.2f}",
                short(record["tflops"]),
                _percent(record["mfu"]),
                _percent(record["of_matrix_rate"]) if results["device"] == "cuda" else "-",
                f"{memory / 2**30:,.1f}" if memory else "-",
                ", ".join(f"{name} {value}" for name, value in (record["setting"] | _rounded(record["notes"])).items()),
            ]
        )
    parameters = next(iter(ways.values()))["non_embedding"] / 1e9
    return f"{shape}, {parameters:,.3f}e9 parameters without embeddings\n{aligned(rows, left=(0, 9))}"


def _targets(results: Results) -> str:
    """Each target beside what was measured; judged on the device that they were set for, and only there."""
    device = results["environment"]["device"]
    judged = device.startswith(DEVICE)
    rows = [["target", "", "measured", ""]]

    def add(text: str, bound: str, measured: str, met: bool) -> None:
        rows.append([text, bound, measured, ("met" if met else "NOT MET") if judged else "not judged"])

    for target in TARGETS:
        ways = by_way(results, target.shape)
        own = ways.get(OWN)
        if own is None:
            continue
        if own["mfu"] is not None:
            add(
                f"{target.shape}: MFU on tokens computed",
                f">= {target.mfu:.0%}",
                _percent(own["mfu"]),
                own["mfu"] >= target.mfu,
            )
        for name, bound in target.times.items():
            if name in ways:
                times = own["trajectories_per_s"] / (ways[name]["trajectories_per_s"] * ways[name]["excess"])
                text = f"{target.shape}: trajectories/s, times those of {ways[name]['title']}"
                add(text, f">= {bound:g}x", f"{times:.2f}x", times >= bound)
    if own := by_way(results, HEADLINE).get(OWN):
        hours = TRAJECTORIES / own["trajectories_per_s"] / 3600
        text = f"{HEADLINE}: {EPOCHS} epochs of Math-Shepherd, {TRAJECTORIES:,} trajectories, extrapolated"
        add(text, f"< {HOURS:g} h", f"{hours:.2f} h", hours < HOURS)
    if len(rows) == 1:
        return ""
    published = PUBLISHED_STEPS * PUBLISHED_SECONDS / 3600
    return "\n".join(
        [
            f"targets, set for one {DEVICE}; measured on {device}",
            aligned(rows, left=(0, 3)),
            "extrapolated: the measured steady state times all trajectories, as if nothing else took time; not a run. "
            f"For comparison, the published trainer took {PUBLISHED_STEPS} steps of {PUBLISHED_SECONDS} s = "
            f"{published:.1f} h for as many, on a node of unknown size (its issue 7).",
        ]
    )


def _notes(results: Results) -> str:
    lines = [
        "What every way computes counts, its padding and its vocabulary logits too, but not what it computes a second "
        "time. A tree has fewer tokens to compute for as many trajectories."
    ]
    for record in results["records"]:
        if record["way"] == "trl" and record["excess"] > 1:
            lines.append(
                f"{record['title']}, {record['shape']}: out of so few trajectories, batches of like length are padded "
                f"{record['excess']:.2f} times as much as out of thousands; with that, and as many computed tokens/s, "
                f"it would do {short(record['trajectories_per_s'] * record['excess'])} trajectories/s: targets are "
                "held against that"
            )
    spread = []
    for record in results["records"]:
        rounds = [statistics.median(laps) for laps in record["lap_seconds"]]
        spread.append((max(rounds) - min(rounds)) / statistics.mean(rounds))
    if any(len(record["lap_seconds"]) > 1 for record in results["records"]):
        lines.append(f"noise: rounds differ by {statistics.median(spread):.1%} (median), {max(spread):.1%} (worst)")
    on_gpu = results["device"] == "cuda"
    described = (f"{r['title']}: {r['source']}{'; ' + r['precision'] if on_gpu else ''}" for r in results["records"])
    lines += dict.fromkeys(described)
    lines += [f"left out: {f['way']}, {f['shape']} ({f['why']})" for f in results["failed"]]
    return "\n".join(lines)


def _rounded(notes: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in notes.items()}


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
