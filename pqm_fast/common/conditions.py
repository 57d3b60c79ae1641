"""The conditions of results that several calls of a command add to: options and files, stored in their folder."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pqm_fast.common.files import read_json, write_json
from pqm_fast.common.lock import is_empty
from pqm_fast.errors import PQMError


def keep_conditions(
    folder: Path,
    kind: str,
    current: dict[str, Any],
    defaults: dict[str, Any],
    *,
    results: Sequence[str],
    prepared: Sequence[str],
    made_elsewhere: Sequence[str] = (),
) -> None:
    """Stores the conditions in a new folder, as KIND.json, and compares them with the stored ones in an old folder.

    Args:
        kind: what the folder holds, in one word.
        current, defaults: the conditions now, and what they were before they could be chosen; JSON-ready.
        results: files and folders that hold results. Without any, conditions may still be corrected.
        prepared: files and folders that are then made again.
        made_elsewhere: files and folders that may be in a new folder already; the caller checks them.

    Raises:
        PQMError: the folder holds something else, or results under other conditions.
    """
    file = folder / f"{kind}.json"
    if not file.exists():
        if not is_empty(folder, made_elsewhere):
            raise PQMError(f"{folder}: is not an empty folder; choose another --out")
        write_json(file, current)
        return
    stored = read_json(file)
    if not isinstance(stored, dict):
        raise PQMError(f"{file}: damaged (not an object); put back a copy, or choose another --out")
    stored_conditions = defaults | stored
    changed = [name for name in current if stored_conditions.get(name) != current[name]]
    if not changed:
        return
    if any((folder / name).exists() for name in results):
        values = ", ".join(f"{name} ({stored_conditions.get(name)!r} then, {current[name]!r} now)" for name in changed)
        raise PQMError(
            f"{folder}: holds a {kind} under other conditions: {values}; give them as they were, or choose another "
            "--out"
        )
    # nothing was trained yet, so nothing is lost: the user has corrected an option
    for path in (folder / name for name in prepared):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    write_json(file, current)
