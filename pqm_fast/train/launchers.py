"""Whether a run was started by the torchrun that starts it now: it has lost a rank, and its run is to be resumed.

torchrun counts its restarts on each machine by itself, and not all of them; so the run folder tells.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pqm_fast.common.files import write_json

FILE = "launchers.json"


def note_launchers(folder: Path, launchers: Iterable[str | None]) -> None:
    """Writes down which torchrun processes have started the run."""
    if names := sorted({name for name in launchers if name is not None}):
        write_json(folder / FILE, names)


def started_by(folder: Path, launchers: Iterable[str | None]) -> bool:
    """Whether one of these torchrun processes has started the run in `folder` before."""
    with suppress(OSError, ValueError, TypeError):
        return not set(json.loads((folder / FILE).read_text(encoding="utf-8"))).isdisjoint(launchers)
    return False
