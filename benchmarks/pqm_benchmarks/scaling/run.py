"""`python -m pqm_benchmarks scaling`: simulates how evenly 8 to 4,096 ranks are loaded, and what the network adds.

The planner and the deal are the trainer's own, on an epoch with as many trajectories as Math-Shepherd. Times follow
from stated rates (`rates.py`): nothing here ran on many GPUs.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pqm_benchmarks.shared.stored import read_stored
from pqm_fast.common.files import write_json


@dataclass(frozen=True)
class ScalingBench:
    """Simulate many ranks: the time that they wait for each other, and for the network."""

    questions: int = 20207
    """Questions of the made-up workload, with 22 solutions each. The default has as many trajectories as
    Math-Shepherd."""
    seed: int = 0
    """Seed of the made-up workload and of the plan."""
    out: str | None = None
    """File for the results, as JSON. Default: none is written."""
    results: str | None = None
    """File of an earlier run: print its tables and draw its picture, and simulate nothing."""
    picture: str | None = None
    """Folder for a picture, scaling.png. Default: none is drawn."""


def run(config: ScalingBench) -> dict[str, Any]:
    """Simulates (or reads --results), writes --out, prints the tables and draws the picture. Returns the results.

    Raises PQMError for an option that makes no sense, or a file of results that cannot be read.
    """
    from pqm_benchmarks.scaling.report import tables

    results = simulate(config) if config.results is None else read_stored(Path(config.results), "scaling", "network")
    if config.out is not None:
        write_json(Path(config.out), results)
    print("\n\n".join(tables(results).values()))
    if config.picture is not None:
        from pqm_benchmarks.scaling.picture import draw

        draw(results, Path(config.picture))
    return results


def simulate(config: ScalingBench) -> dict[str, Any]:
    """{"config", "environment", "rates": fields of Rates, "workload": {layout: `summary`}, "planning": seconds on this
    host, "idle", "epoch" and "network": rows of the functions of that name}."""
    from pqm_benchmarks.scaling.balance import epoch_rows, idle_rows, planning_seconds, summary
    from pqm_benchmarks.scaling.cases import BUDGET
    from pqm_benchmarks.scaling.epoch import LAYOUTS, Workload
    from pqm_benchmarks.scaling.network import network_rows
    from pqm_benchmarks.scaling.rates import Rates
    from pqm_benchmarks.shared.workload import make_workload
    from pqm_fast.common.environment import describe

    rates = Rates()
    workload = Workload.of(make_workload(config.questions, config.seed))
    layouts = {layout: summary(workload, layout, BUDGET, config.seed) for layout in LAYOUTS}
    return {
        "config": {"questions": config.questions, "seed": config.seed, "budget": BUDGET},
        "environment": describe(),
        "rates": asdict(rates),
        "workload": layouts,
        "planning": planning_seconds(workload, BUDGET, config.seed),
        "idle": idle_rows(workload, BUDGET, config.seed, rates),
        "epoch": epoch_rows(workload, BUDGET, config.seed, rates),
        "network": network_rows(layouts["plain"]["pairs_of_a_token"], rates),
    }
