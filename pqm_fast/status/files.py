"""What the folder of a run holds, read without disturbing the run."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pqm_fast.common.checksums import find_missing
from pqm_fast.common.lock import LOCK_NAME, LockFile, look_at_lock
from pqm_fast.errors import PQMError
from pqm_fast.probe.files import HEADS_FILE
from pqm_fast.train.metrics_file import METRICS_FILE, is_metrics, is_start, read_lines
from pqm_fast.train.run_files import BEST, CONFIG_FILE, complete_checkpoints, pointed_at

KINDS = ("train", "eval", "skipped")


@dataclass(frozen=True)
class StoredCheckpoint:
    name: str
    step: int
    time: float
    """UNIX seconds at which it was written."""


@dataclass(frozen=True)
class RunFiles:
    folder: Path
    rows: list[dict[str, Any]]
    """Rows of metrics.jsonl of these kinds, in their order."""
    start: dict[str, Any]
    """The row of the last start; {} if there is none (yet)."""
    lock: LockFile | None
    checkpoint: StoredCheckpoint | None
    """The newest one with all its files."""
    incomplete: dict[str, str]
    """What is missing in each newer one, by name."""
    best: str | None
    """The checkpoint with the lowest held-out loss, by the name in the file `best`."""
    finished: bool
    """Whether the files that the end of a run writes are there."""
    metrics_time: float | None
    """UNIX seconds at which the last row was written."""
    last_change: float
    """UNIX seconds at which the run last changed a file."""


def read_run(folder: Path) -> RunFiles:
    """Raises PQMError if `folder` does not hold a run of `pqm-fast train`."""
    if not folder.is_dir():
        raise PQMError(f"{folder}: {'a file' if folder.exists() else 'no such folder'}; name the folder of a run")
    lock = look_at_lock(folder)
    is_locked = lock is not None and (lock.held if lock.holder is None else lock.holder.what == "train")
    if not is_locked and not any((folder / name).exists() for name in (METRICS_FILE, CONFIG_FILE)):
        raise PQMError(
            f"{folder}: not a run of `pqm-fast train`, as it has neither {METRICS_FILE} nor {CONFIG_FILE}; name the "
            "folder that was given to it as --out"
        )
    metrics = folder / METRICS_FILE
    metrics_time = _modified(metrics)  # before the rows are read, so that it is never that of a later row
    checkpoint, incomplete = _newest_checkpoint(folder / "checkpoints")
    best = pointed_at(folder / "checkpoints", BEST)
    rows = [row for _, row in read_lines(metrics)]
    starts = [row for row in rows if is_start(row)]
    return RunFiles(
        folder=folder,
        rows=[row for row in rows if is_metrics(row) and row["kind"] in KINDS],
        start=starts[-1] if starts else {},
        lock=lock,
        checkpoint=checkpoint,
        incomplete=incomplete,
        best=best.name if best is not None else None,
        finished=(folder / "config.json").exists()
        and any((folder / name).exists() for name in ("training.png", HEADS_FILE))
        and any(folder.glob("*.safetensors")),
        metrics_time=metrics_time,
        last_change=max(_times(folder), default=0.0),
    )


def _newest_checkpoint(folder: Path) -> tuple[StoredCheckpoint | None, dict[str, str]]:
    """Whether a file is missing is looked up, but no file is read: that takes minutes for a large model."""
    incomplete: dict[str, str] = {}
    for path in reversed(complete_checkpoints(folder)):
        missing, time = find_missing(path), _modified(path)
        if missing is None and time is not None:
            return StoredCheckpoint(path.name, int(path.name.removeprefix("step-")), time), incomplete
        if missing is not None:
            incomplete[path.name] = missing
    return None, incomplete


def _times(folder: Path) -> Iterator[float]:
    """When each file that a run changes while it is under way was last changed. A checkpoint that is being written is a
    folder in checkpoints/ whose files grow."""
    paths = [folder / name for name in (METRICS_FILE, CONFIG_FILE, LOCK_NAME, "config.json", "training.png")]
    for parent, _, names in os.walk(folder / "checkpoints"):
        paths += [Path(parent), *(Path(parent) / name for name in names)]
    yield from (time for path in paths if (time := _modified(path)) is not None)


def _modified(path: Path) -> float | None:
    """UNIX seconds; None if there is nothing at `path` (any more)."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None
