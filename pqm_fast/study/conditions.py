"""The conditions of a study: the options and files that all its trials share, stored as study.json in its folder."""

import json
from dataclasses import asdict
from typing import Any

from pqm_fast.common.conditions import keep_conditions
from pqm_fast.data.source_key import source_key
from pqm_fast.study.config import StudyConfig

# options that may change from one call to the next: the points of the grid, and how the trials are run
GRID = {"losses", "zetas", "labels", "models", "learning_rates", "seeds", "baseline"}
GRID |= {"compare_weights", "compare_learning_rates"}
MAY_CHANGE = GRID | {"out", "workers", "progress", "device", "save_every", "keep_weights"}


def check_conditions(config: StudyConfig) -> None:
    """Stores the conditions in a new folder, and compares them with the stored ones in an old folder.

    Raises:
        PQMError: the folder holds something else, or a study under other conditions.
    """
    keep_conditions(
        config.folder,
        "study",
        conditions(config),
        conditions(StudyConfig()),
        results=("runs", "trials"),
        prepared=("data",),
    )


def conditions(config: StudyConfig) -> dict[str, Any]:
    """The options that all trials share and the state of the files they name, JSON-ready."""
    options = {k: v for k, v in json.loads(json.dumps(asdict(config))).items() if k not in MAY_CHANGE}
    return options | {"files": [source_key(name) for name in (*config.data, *config.tuning, *config.test)]}
