"""The conditions of a study: the options and files that all its trials share, stored as study.json in its folder."""

import json
import shutil
from dataclasses import asdict
from typing import Any

from pqm_fast.common.files import write_json
from pqm_fast.common.lock import is_empty
from pqm_fast.data.source_key import source_key
from pqm_fast.errors import PQMError
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
    file = config.folder / "study.json"
    current = conditions(config)
    if not file.exists():
        if not is_empty(config.folder):
            raise PQMError(f"{config.out}: is not an empty folder; choose another --out")
        write_json(file, current)
        return
    # an option that was added after the study started had its default value in it
    stored_conditions = conditions(StudyConfig()) | json.loads(file.read_text(encoding="utf-8"))
    changed = [name for name in current if stored_conditions.get(name) != current[name]]
    if not changed:
        return
    if any((config.folder / name).exists() for name in ("runs", "trials")):
        values = ", ".join(f"{name} ({stored_conditions.get(name)!r} then, {current[name]!r} now)" for name in changed)
        raise PQMError(
            f"{config.out}: holds a study under other conditions: {values}; give them as they were, or choose another "
            "--out"
        )
    # nothing was trained yet, so nothing is lost: the user has corrected an option
    shutil.rmtree(config.folder / "data", ignore_errors=True)
    write_json(file, current)


def conditions(config: StudyConfig) -> dict[str, Any]:
    """The options that all trials share and the state of the files they name, JSON-ready."""
    options = {k: v for k, v in json.loads(json.dumps(asdict(config))).items() if k not in MAY_CHANGE}
    return options | {"files": [source_key(name) for name in (*config.data, *config.tuning, *config.test)]}
