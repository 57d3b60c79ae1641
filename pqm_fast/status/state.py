"""Whether a run is under way."""

import socket
from typing import Literal

from pqm_fast.status.files import RunFiles
from pqm_fast.status.numbers import duration

State = Literal["running", "finished", "stopped", "failed to start", "unknown"]
LONG = 3600.0  # seconds without a changed file after which a run on another machine may be gone


def find_state(files: RunFiles, now: float) -> tuple[State, str]:
    """The state of a run, and what shows it. `now`: UNIX seconds.

    The lock decides, as far as it can be seen: some shared file systems do not show it to other machines, and some have
    no locks. A process that ends by itself removes the lock file; one that is killed leaves it."""
    silence = max(0.0, now - files.last_change)
    ago = f"the last file was changed {duration(silence)} ago"
    lock = files.lock
    if lock is not None:
        holder = lock.holder or "a process that has not written its name yet"
        here = lock.holder is None or lock.holder.host == socket.gethostname()
        recent = silence <= LONG
        if lock.held and (here or recent):
            return "running", f"{holder}; {ago}"
        if lock.held:
            return "unknown", f"{holder} holds the lock on another machine, but {ago}"
        if lock.held is None:
            return "running" if recent else "unknown", f"{holder}; its lock cannot be seen on this file system; {ago}"
        if not here and recent:
            return "unknown", f"{holder} holds no lock that this machine can see, but {ago}"
    if files.finished:
        return "finished", ago
    if not files.start and not files.rows and files.checkpoint is None:
        return "failed to start", f"it ended before its first step; {ago}"
    return "stopped", ago
