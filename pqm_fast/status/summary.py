"""Everything that `pqm-fast status` says about a run, as one object."""

import statistics
from dataclasses import dataclass
from typing import Any

from pqm_fast.common.lock import Holder
from pqm_fast.status.files import RunFiles, StoredCheckpoint
from pqm_fast.status.health import Health, find_health
from pqm_fast.status.numbers import Trend, points, trend
from pqm_fast.status.state import State, find_state
from pqm_fast.train.run_files import resume_command


@dataclass(frozen=True)
class Best:
    """The best value of a figure in an evaluation."""

    value: float
    step: int


@dataclass(frozen=True)
class Speed:
    """Figures per second at the last row, and their medians over the run."""

    tokens: float
    tokens_median: float
    trajectories: float
    trajectories_median: float


@dataclass(frozen=True)
class Summary:
    run: str
    state: State
    reason: str
    holder: Holder | None
    """Of a run that is running, or may be."""
    last_change: float
    """UNIX seconds at which the run last changed a file."""
    start: dict[str, Any]
    """Where and with what the run was last started, as in metrics.jsonl."""
    step: int
    total_steps: int | None
    training: dict[str, Trend]
    held_out: dict[str, Trend]
    held_out_step: int | None
    """The step of the last evaluation."""
    best: dict[str, Best]
    """The lowest loss (by which the checkpoint `best` is chosen) and the highest AUROC."""
    speed: Speed | None
    seconds_left: float | None
    """If it is not running: once it is resumed."""
    expected_end: float | None
    """UNIX seconds; only while it is running."""
    health: Health
    checkpoint: StoredCheckpoint | None
    """The newest one with all its files. Their contents were not compared with their checksums; --resume does that."""
    best_checkpoint: str | None
    resume: str | None
    """The command that resumes a run that has stopped."""


def summarise(files: RunFiles, now: float) -> Summary:
    """`now`: UNIX seconds."""
    state, reason = find_state(files, now)
    train = [row for row in files.rows if row["kind"] == "train"]
    held_out = [row for row in files.rows if row["kind"] == "eval"]
    total = files.start.get("total_steps")
    step = max(
        files.start.get("step", 0),
        files.checkpoint.step if files.checkpoint else 0,
        *(row["step"] for row in files.rows),
        0,
    )
    seconds_left = _seconds_left(files, train, state, now)
    return Summary(
        run=str(files.folder),
        state=state,
        reason=reason,
        holder=files.lock.holder if files.lock is not None and state in ("running", "unknown") else None,
        last_change=files.last_change,
        start=files.start,
        step=step,
        total_steps=total if type(total) is int and total > 0 else None,
        training=_trends(train, "loss", "step_accuracy"),
        held_out=_trends(held_out, "loss", "step_accuracy", "auroc"),
        held_out_step=held_out[-1]["step"] if held_out else None,
        best=_best(held_out),
        speed=_speed(train),
        seconds_left=seconds_left,
        expected_end=now + seconds_left if state == "running" and seconds_left is not None else None,
        health=find_health(files, state, step, now),
        checkpoint=files.checkpoint,
        best_checkpoint=files.best,
        resume=resume_command(files.folder, _ranks(files.start)) if state == "stopped" else None,
    )


def _trends(rows: list[dict[str, Any]], *names: str) -> dict[str, Trend]:
    found = {name: trend(points(rows, name)) for name in names}
    return {name: figure for name, figure in found.items() if figure is not None}


def _best(rows: list[dict[str, Any]]) -> dict[str, Best]:
    best = {}
    for name, choose in (("loss", min), ("auroc", max)):
        if found := points(rows, name):
            step, value = choose(found, key=lambda point: point[1])
            best[name] = Best(value, step)
    return best


def _speed(train: list[dict[str, Any]]) -> Speed | None:
    tokens, trajectories = (
        [value for _, value in points(train, f"{name}_per_second")] for name in ("tokens", "trajectories")
    )
    if not tokens or not trajectories:
        return None
    return Speed(tokens[-1], statistics.median(tokens), trajectories[-1], statistics.median(trajectories))


def _seconds_left(files: RunFiles, train: list[dict[str, Any]], state: State, now: float) -> float | None:
    """The time left at the last row, less the time since that row was written."""
    estimates = points(train, "eta_seconds")
    if not estimates or state == "finished":
        return None
    age = now - files.metrics_time if state == "running" and files.metrics_time is not None else 0.0
    return max(0.0, estimates[-1][1] - max(0.0, age))


def _ranks(start: dict[str, Any]) -> int:
    world = start.get("world")
    return world if type(world) is int and world > 0 else 1
