"""`python -m pqm_benchmarks search`: guided search against plain samples with as many tokens, on the arithmetic world.

It takes the questions and the models of a `pqm-fast demo`, so that its models have not seen the questions.
"""

import json
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from pqm_benchmarks.search.report import tables
from pqm_benchmarks.shared.stored import read_stored
from pqm_fast.common.files import write_json
from pqm_fast.common.lock import is_empty
from pqm_fast.errors import PQMError


@dataclass(frozen=True)
class Setting:
    """Options of `pqm-fast search` that differ between the settings."""

    method: str = "beam"
    n: int = 8
    beam_width: int = 4
    aggregate: str = "min"
    distinct: bool = False


MAIN = tuple(Setting(method, n) for n in (4, 8, 16) for method in ("beam", "dvts"))
VARIANTS = (
    Setting(distinct=True),
    Setting(aggregate="last"),
    Setting(beam_width=2),
    Setting(beam_width=8),
    Setting("dvts", aggregate="last"),
    Setting("dvts", beam_width=2),
)


@dataclass(frozen=True)
class SearchBench:
    """Guided search against plain samples with as many tokens, for every policy of the arithmetic world."""

    demo: str | None = None
    """Folder that `pqm-fast demo` has written with one loss: its held-out questions, and the model of each seed."""
    work: str | None = None
    """Folder for the pools; new or empty."""
    out: str | None = None
    """File for the results, as JSON. Default: none is written."""
    results: str | None = None
    """File of an earlier run: print its tables, and search nothing."""
    policies: tuple[str, ...] = ()
    """Policies of the arithmetic world to search with. Default: all."""


def run(config: SearchBench) -> dict[str, Any]:
    """Searches (or reads --results), writes --out and prints the tables. Returns the results.

    Raises PQMError for an option that makes no sense.
    """
    results = measure(config) if config.results is None else read_stored(Path(config.results), "search", "settings")
    if config.out is not None:
        write_json(Path(config.out), results)
    print("\n\n".join(tables(results).values()))
    return results


def measure(config: SearchBench) -> dict[str, Any]:
    """{"demo": options of the demo, "questions", "settings": [{"setting", "search", "samples": mean figures by policy
    and their average, "difference": of their best}], ...}; see `_summary`."""
    from pqm_fast.common.environment import describe

    if config.demo is None or config.work is None:
        raise PQMError("search: give --demo, the folder of a `pqm-fast demo`, and --work; or --results")
    demo, work = Path(config.demo), Path(config.work)
    if not is_empty(work):
        raise PQMError(f"{work}: is not empty; delete it or choose another --work")
    options = json.loads((demo / "result.json").read_text(encoding="utf-8"))["config"]
    if len(options["losses"]) != 1:
        raise PQMError(f"{demo}: has models of {len(options['losses'])} losses; give a demo with one")
    work.mkdir(parents=True, exist_ok=True)
    data = _questions(demo, work)
    settings = []
    for setting in MAIN + VARIANTS:
        found = dict(_searches(config, setting, options, data))
        settings.append({"setting": asdict(setting), **_summary(found)})
        print(f"done: {setting}", flush=True)
    return {"demo": options, **describe(), "settings": settings}


def _questions(demo: Path, work: Path) -> Path:
    """The held-out questions of the demo, without the solutions of its pool."""
    path = work / "questions.jsonl"
    rows = map(json.loads, (demo / "world" / "pool.jsonl").read_text(encoding="utf-8").splitlines())
    lines = [json.dumps({name: row[name] for name in ("id", "question", "answer")}) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def _searches(
    config: SearchBench, setting: Setting, options: dict[str, Any], data: Path
) -> Iterator[tuple[tuple[str, int], dict[str, Any]]]:
    """((policy, seed), `figures`) of one search for each policy and each training seed, which seeds the search too."""
    from pqm_fast.arithmetic.policies import make_policies
    from pqm_fast.sample.options import PolicyOptions
    from pqm_fast.search.figures import figures
    from pqm_fast.search.options import SearchConfig
    from pqm_fast.search.run import search

    [loss], world = options["losses"], options["world_seed"]
    for policy in config.policies or make_policies(world):
        for seed in options["seeds"]:
            name = "-".join(map(str, (*asdict(setting).values(), policy, seed)))
            searching = SearchConfig(
                policy=f"arithmetic:{policy}:{world}",
                model=str(Path(str(config.demo)) / f"{loss}-seed{seed}"),
                data=(str(data),),
                out=str(data.with_name(f"{name}.jsonl")),
                **asdict(setting),
                compare=True,
                seed=seed,
                together=len(data.read_text(encoding="utf-8").splitlines()),
                writing=PolicyOptions(device="cpu"),
                progress=False,
            )
            with redirect_stdout(StringIO()):
                search(searching)
            yield (policy, seed), figures(Path(searching.out), setting.aggregate)


def _summary(found: dict[tuple[str, int], dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds by policy, and over all; the difference of `best` with a 95% interval over questions, each
    of which is the mean over policies and seeds."""
    import numpy as np

    from pqm_fast.search.figures import CHOICES, paired_difference

    policies = list(dict.fromkeys(policy for policy, _ in found))
    [method] = {name for result in found.values() for name in result["methods"]} - {"samples"}
    summary: dict[str, Any] = {}
    for part, name in (("search", method), ("samples", "samples")):
        by_policy = {}
        for policy in policies:
            runs = [result["methods"][name] for (own, _), result in found.items() if own == policy]
            by_policy[policy] = {choice: float(np.mean([run[choice]["mean"] for run in runs])) for choice in CHOICES}
            by_policy[policy] |= {
                field: float(np.mean([run[field] for run in runs])) for field in ("tokens", "solutions")
            }
        names = by_policy[policies[0]]
        average = {field: float(np.mean([by_policy[policy][field] for policy in policies])) for field in names}
        summary[part] = {"policies": by_policy, "average": average}
    by_question = [
        np.subtract(*(result["by_question"][name] for name in (method, "samples"))) for result in found.values()
    ]
    differences = np.mean(by_question, axis=0)
    return {"questions": len(differences), **summary, "difference": paired_difference(differences)}
