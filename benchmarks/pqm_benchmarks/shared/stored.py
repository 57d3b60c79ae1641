"""Results that an earlier run has stored."""

import json
from pathlib import Path
from typing import Any

from pqm_fast.errors import PQMError


def read_stored(path: Path, command: str, field: str) -> dict[str, Any]:
    """The results of `python -m pqm_benchmarks COMMAND --out`. PQMError for a file without them: nothing in `field`."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if not results[field]:
            raise KeyError(field)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise PQMError(f"{path}: is not a file of `python -m pqm_benchmarks {command} --out` ({error!r})") from error
    return results
