"""A train.json as text: rates of every way, targets, how long Math-Shepherd would take, and what is missing."""

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

ALL_SWITCHES = "all"  # the way with every switch on
OURS = ("packed", "tree", "step_rows", "compiled", ALL_SWITCHES)  # each has one switch more
# The published code trains for two epochs on Math-Shepherd; steps and seconds a step are those of a user's log
# (WindyLee0822/Process_Q_Model, issue 7), which does not name the number of GPUs.
EPOCHS, TRAJECTORIES, PUBLISHED_STEPS, PUBLISHED_SECONDS = 2, 889_106, 532, 15.3
HOURS = 4.0
HEADLINE = "Qwen2.5-7B"

COLUMNS: Columns = {
    "trajectories/s": lambda row: short(row.record["trajectories_per_s"]),
    "x published": lambda row: times(row.record, row.base, "trajectories_per_s"),
    "real tokens/s": lambda row: f"{row.record['real_tokens_per_s']:,.0f}",
    "computed/real": computed_over_real,
    "TFLOP/s": lambda row: short(row.record["tflops"]),
    "MFU": lambda row: percent(row.record["mfu"]),
    "of matrix rate": lambda row: percent(row.record["of_matrix_rate"]) if row.results["device"] == "cuda" else "-",
    "peak GiB": lambda row: gib(row.record["peak_bytes"]),
    "setting": lambda row: settings(row.record),
}


@dataclass(frozen=True)
class Target:
    shape: str
    mfu: float
    """MFU of `all` on everything that it computes."""
    times: dict[str, float]
    """Trajectories/s of `all` over those that another way would reach with a whole data set to batch."""


TARGETS = (
    Target("Qwen2.5-0.5B", 0.42, {"reference": 6, "trl": 3}),
    Target("Qwen2.5-1.5B", 0.52, {"reference": 6, "trl": 3}),
    Target("Qwen2.5-7B", 0.57, {"reference": 5, "trl": 2.5}),
)


def table(results: Results) -> str:
    """All results."""
    in_step = results["config"]["questions"] * results["workload"]["trajectories"] // results["workload"]["questions"]
    workload = f"(set, not measured); {in_step} in an optimizer step"
    return report.table(results, workload, "reference", COLUMNS, _targets(results), _notes(results))


def targets(results: Results) -> Targets:
    """The targets of the models that were measured."""
    judged = Targets(results)
    for target in TARGETS:
        ways = by_way(results, target.shape)
        ours = ways.get(ALL_SWITCHES)
        if ours is None:
            continue
        if ours["mfu"] is not None:
            text = f"{target.shape}: MFU on tokens computed"
            judged.add(text, f">= {target.mfu:.0%}", percent(ours["mfu"]), ours["mfu"] >= target.mfu)
        for name, bound in target.times.items():
            if name in ways:
                other = ways[name]
                faster = ours["trajectories_per_s"] / (other["trajectories_per_s"] * other["excess"])
                judged.add_times(f"{target.shape}: trajectories/s", other, bound, faster)
    if ours := by_way(results, HEADLINE).get(ALL_SWITCHES):
        hours = TRAJECTORIES / ours["trajectories_per_s"] / 3600
        text = f"{HEADLINE}: {EPOCHS} epochs of Math-Shepherd, {TRAJECTORIES:,} trajectories, extrapolated"
        judged.add(text, f"< {HOURS:g} h", f"{hours:.2f} h", hours < HOURS)
    return judged


def _targets(results: Results) -> str:
    published = PUBLISHED_STEPS * PUBLISHED_SECONDS / 3600
    return targets(results).text(
        "extrapolated: the measured steady state times all trajectories, as if nothing else took time; not a run. "
        f"For comparison, the published trainer took {PUBLISHED_STEPS} steps of {PUBLISHED_SECONDS} s = "
        f"{published:.1f} h for as many, on a node of unknown size (its issue 7).",
    )


def _notes(results: Results) -> list[str]:
    def source(record: Record) -> str:
        return f"{record['source']}; {record['precision']}" if results["device"] == "cuda" else record["source"]

    return [
        "Everything that a way computes counts, padding and vocabulary logits included, except what it computes a "
        "second time. A tree has fewer tokens to compute for as many trajectories.",
        *(note + ": targets compare with this rate" for note in padding(results["records"], "trajectories")),
        *closing(results, source),
    ]
