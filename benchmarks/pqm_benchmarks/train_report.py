"""What a train.json says, as text: rates of every way, targets, how long Math-Shepherd would take, what is missing."""

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

OWN = "all"  # the way with every switch on
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
    grids = (_grid(results, shape) for shape in shapes)
    parts = [heading(results, _workload(results)), *grids, _targets(results), _notes(results)]
    return "\n\n".join(part for part in parts if part)


def _workload(results: Results) -> str:
    in_step = results["config"]["questions"] * results["workload"]["trajectories"] // results["workload"]["questions"]
    return f"(set, not measured); {in_step} in an optimizer step"


def _grid(results: Results, shape: str) -> str:
    ways = by_way(results, shape)
    rows = [["", *COLUMNS]]
    base = ways.get("reference")
    for record in ways.values():
        rows.append(
            [
                record["title"],
                short(record["trajectories_per_s"]),
                f"{record['trajectories_per_s'] / base['trajectories_per_s']:.2f}" if base else "-",
                f"{record['real_tokens_per_s']:,.0f}",
                f"{record['computed_tokens'] / results['workload']['tokens']:.2f}",
                short(record["tflops"]),
                percent(record["mfu"]),
                percent(record["of_matrix_rate"]) if results["device"] == "cuda" else "-",
                gib(record["peak_bytes"]),
                settings(record),
            ]
        )
    parameters = next(iter(ways.values()))["non_embedding"] / 1e9
    return f"{shape}, {parameters:,.3f}e9 parameters without embeddings\n{aligned(rows, left=(0, 9))}"


def _targets(results: Results) -> str:
    found = Targets(results)
    for target in TARGETS:
        ways = by_way(results, target.shape)
        own = ways.get(OWN)
        if own is None:
            continue
        if own["mfu"] is not None:
            text = f"{target.shape}: MFU on tokens computed"
            found.add(text, f">= {target.mfu:.0%}", percent(own["mfu"]), own["mfu"] >= target.mfu)
        for name, bound in target.times.items():
            if name in ways:
                times = own["trajectories_per_s"] / (ways[name]["trajectories_per_s"] * ways[name]["excess"])
                text = f"{target.shape}: trajectories/s, times those of {ways[name]['title']}"
                found.add(text, f">= {bound:g}x", f"{times:.2f}x", times >= bound)
    if own := by_way(results, HEADLINE).get(OWN):
        hours = TRAJECTORIES / own["trajectories_per_s"] / 3600
        text = f"{HEADLINE}: {EPOCHS} epochs of Math-Shepherd, {TRAJECTORIES:,} trajectories, extrapolated"
        found.add(text, f"< {HOURS:g} h", f"{hours:.2f} h", hours < HOURS)
    published = PUBLISHED_STEPS * PUBLISHED_SECONDS / 3600
    return found.text(
        "extrapolated: the measured steady state times all trajectories, as if nothing else took time; not a run. "
        f"For comparison, the published trainer took {PUBLISHED_STEPS} steps of {PUBLISHED_SECONDS} s = "
        f"{published:.1f} h for as many, on a node of unknown size (its issue 7).",
    )


def _notes(results: Results) -> str:
    lines = [
        "What every way computes counts, its padding and its vocabulary logits too, but not what it computes a second "
        "time. A tree has fewer tokens to compute for as many trajectories."
    ]
    lines += [note + ": targets are held against that" for note in padding(results["records"], "trajectories")]
    lines += noise(results["records"])
    on_gpu = results["device"] == "cuda"
    described = (f"{r['title']}: {r['source']}{'; ' + r['precision'] if on_gpu else ''}" for r in results["records"])
    lines += dict.fromkeys(described)
    lines += left_out(results)
    return "\n".join(lines)
