"""`pqm-fast study`: shared data, then the trials of the grid, then results.json, pictures and study.md."""

from dataclasses import asdict
from typing import Any

from pqm_fast.common.lock import locked
from pqm_fast.study.analyse import analyse
from pqm_fast.study.conditions import check_conditions
from pqm_fast.study.config import StudyConfig
from pqm_fast.study.document import document
from pqm_fast.study.grid import cells
from pqm_fast.study.judged_pool import read_judged_pool
from pqm_fast.study.output import write_study
from pqm_fast.study.schedule import run_trials
from pqm_fast.study.shared_data import prepare


def study(config: StudyConfig) -> dict[str, Any]:
    """Runs the trials that are not done yet.

    Returns:
        The contents of results.json: the options, the device, and `pool` and `cells` as `analyse` returns them.

    Raises:
        PQMError: data or a folder that cannot be used, or a trial that failed for a reason other than divergence.
    """
    with locked(config.folder, "study", folder=True):
        return _study(config)


def _study(config: StudyConfig) -> dict[str, Any]:
    from pqm_fast.common.environment import describe
    from pqm_fast.study.pictures import draw

    check_conditions(config)
    shared = prepare(config)
    for message in shared.left_out:
        print(message)
    grid = cells(config)
    trials = run_trials(config, shared, grid)
    results = {
        "config": {k: v for k, v in asdict(config).items() if k not in ("progress", "workers")},
        **describe(),
        "trials": len(trials),
        "left_out": shared.left_out,
        **analyse(config, grid, trials, read_judged_pool(shared.test)),
    }
    write_study(config.folder, results, draw, document)
    return results
