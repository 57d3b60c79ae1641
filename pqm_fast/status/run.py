"""`pqm-fast status`: the state of runs, as text or JSON."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pqm_fast.errors import PQMError
from pqm_fast.status.files import read_run
from pqm_fast.status.numbers import is_finite
from pqm_fast.status.summary import summarise
from pqm_fast.status.text import lines


@dataclass(frozen=True)
class StatusConfig:
    """How runs of `pqm-fast train` are doing: progress, time left, figures and their trends, health, checkpoints. It
    reads their files only, so it disturbs no run and can watch one on another machine."""

    runs: tuple[str, ...]
    """Folders of runs (what was given to train as --out). They can come first, without --runs."""
    json: bool = False
    """Print a JSON list with an object for each run, for programs. Times are UNIX seconds."""


def status(config: StatusConfig) -> str:
    """The text to print.

    Raises PQMError if a folder does not hold a run; its message names every such folder.
    """
    if not config.runs:
        raise PQMError("runs: name at least one folder of a run")
    found, errors = [], []
    for run in config.runs:
        try:
            found.append(read_run(Path(run)))
        except PQMError as error:
            errors.append(str(error))
    if errors:
        raise PQMError("\n".join(errors))
    now = time.time()
    summaries = [summarise(files, now) for files in found]
    if config.json:
        return json.dumps([_finite(asdict(summary)) for summary in summaries], indent=2, allow_nan=False)
    return "\n".join(line for summary in summaries for line in lines(summary, now))


def _finite(value: Any) -> Any:
    """JSON has no number for what is not finite: None stands there."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not is_finite(value) else value
