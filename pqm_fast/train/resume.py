"""Resumes a run: finds its checkpoint, checks that it is still the same run, and keeps what it wrote before."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pqm_fast.common.checksums import find_damage, has_sums
from pqm_fast.common.files import remove_leftovers
from pqm_fast.common.lock import is_empty
from pqm_fast.errors import PQMError
from pqm_fast.ranks.group import ALONE, Ranks
from pqm_fast.train.checkpoint import Checkpoint, load_checkpoint, read_checkpoint
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.metrics_file import METRICS_FILE, read_metrics
from pqm_fast.train.run_files import CONFIG_FILE, complete_checkpoints, resume_command
from pqm_fast.train.run_identity import check_identity
from pqm_fast.train.stored_options import check_options
from pqm_fast.train.training_state import TrainingState


class RunComplete(PQMError):
    """Nothing is left to do; `metrics` are the held-out ones."""

    def __init__(self, message: str, metrics: dict[str, Any]):
        super().__init__(message)
        self.metrics = metrics


@dataclass(frozen=True)
class Start:
    """Where a run starts: before its first step, or after the step of a checkpoint.

    A resumed run keeps the dtype and the sizes that it was started with, whatever `auto` would choose now.
    """

    config: TrainConfig
    checkpoint: Checkpoint | None

    @property
    def step(self) -> int:
        """How many optimizer steps have been done."""
        return 0 if self.checkpoint is None else self.checkpoint.state["step"]

    @property
    def dtype(self) -> str:
        """The name of a torch dtype, or auto."""
        if self.checkpoint is None or self.config.dtype != "auto":
            return self.config.dtype
        return self.checkpoint.state["dtype"]

    @property
    def micro_batch_tokens(self) -> int | Literal["auto"]:
        if self.checkpoint is None:
            return self.config.micro_batch_tokens
        return self.checkpoint.state["micro_batch_tokens"]

    def micro_batches(self, ranks: int) -> int:
        """Micro-batches in an optimizer step, of all `ranks` together."""
        return ranks * self.config.accumulation if self.checkpoint is None else self.checkpoint.state["micro_batches"]

    def repeats(self, kind: str, step: int, total_steps: int) -> bool:
        """Whether the run will write a row of `kind` (train or eval) for `step` into metrics.jsonl, so that an earlier
        row for it must go. The final evaluation follows the last checkpoint, so it is always repeated."""
        last_kept = min(self.step, total_steps - 1) if kind == "eval" else self.step
        return step > last_kept


def find_start(config: TrainConfig, notes: list[str]) -> Start:
    """Where a run with these options starts. `notes` gets a message for each damaged checkpoint.

    Raises PQMError for a run folder that cannot be used with these options. Writes nothing there, but repairs a damaged
    config.yaml, and removes what a killed run left behind.
    """
    config_file = config.folder / CONFIG_FILE
    remove_leftovers(config.folder)  # from a run that was killed while it wrote its config.yaml
    if not config.resume:
        if not is_empty(config.folder):
            problem = "already holds a run" if config_file.exists() else "is not empty"
            raise PQMError(f"{config.out}: {problem}; choose another --out, or --resume to continue the run in it")
        return Start(config, None)
    checkpoint, damaged = newest_intact(config.folder / "checkpoints")
    if checkpoint is None and not config_file.exists():
        raise PQMError(f"{config.out}: no run to resume here (no config.yaml); start it without --resume")
    check_options(config, checkpoint, notes)
    notes += [f"{path.name} is damaged ({reason}): left out" for path, reason in damaged.items()]
    if checkpoint is None and (config.folder / "config.json").exists():
        raise PQMError(
            f"{config.out}: holds its final weights, and no checkpoint to resume from (save_every was 0). Evaluate "
            f"them with `pqm-fast evaluate --model {config.out}`, or train further with --model {config.out} and "
            "another --out"
        )
    return Start(config, checkpoint)


def newest_intact(folder: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The newest checkpoint whose files are as they were written, and what is wrong with each newer one.

    Raises PQMError if there are checkpoints and all are damaged.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(complete_checkpoints(folder)):
        checkpoint = read_checkpoint(path)
        if isinstance(checkpoint, Checkpoint):
            return checkpoint, damaged
        damaged[path] = checkpoint
    if damaged:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in damaged.items())
        raise PQMError(
            f"{folder}: every checkpoint is damaged, or of a pqm-fast from before checkpoints had checksums "
            f"({reasons}); put back a copy, or delete the folder to start again from the first step"
        )
    return None, damaged


def check_same_run(start: Start, identity: dict[str, Any], total_steps: int, *, evaluates: bool) -> str | None:
    """Compares a run that is resumed with its checkpoint, once its model and data are loaded.

    Returns a message if it is to have more steps than before. Raises PQMError for another model or other data, for
    fewer steps than before, and if nothing is left to do. `evaluates`: the run has held-out data.
    """
    config, checkpoint = start.config, start.checkpoint
    if checkpoint is None:
        return None
    check_identity(checkpoint, identity, config.model)
    planned = checkpoint.state["total_steps"]
    if total_steps < planned:
        raise PQMError(
            f"{config.out}: the run was started for {planned:,} steps, and these options ask for {total_steps:,}; a "
            "run can be resumed to its end or beyond (--max-steps, --epochs)"
        )
    if total_steps > planned:
        return (
            f"extended from {planned:,} to {total_steps:,} steps: from step {start.step + 1:,} on, the learning "
            f"rate is that of a run of {total_steps:,} steps"
        )
    if _is_complete(config, total_steps, evaluates):
        raise RunComplete(
            f"{config.out}: the run is complete, there is nothing to resume; for more steps than {planned:,} pass "
            "--max-steps or --epochs",
            json.loads((config.folder / "metrics.json").read_text(encoding="utf-8")) if evaluates else {},
        )
    return None


def restore(start: Start, training: TrainingState, ranks: Ranks, total_steps: int) -> list[str]:
    """Restores what training changes to where the run starts, and removes from the run folder what will be written
    again. Returns what to tell the user.

    Raises PQMError if the checkpoint does not fit the model.
    """
    config, checkpoint = start.config, start.checkpoint
    if not config.resume:
        return []
    if checkpoint is not None:
        load_checkpoint(checkpoint, training, ranks)
    notes = ranks.from_first(lambda: _tidied(start, total_steps))
    if checkpoint is not None and (then := checkpoint.state["ranks"]) != ranks.world:
        notes.append(f"the checkpoint was written by {then} processes, and is continued by {ranks.world}")
    return notes


def _tidied(start: Start, total_steps: int) -> list[str]:
    config, checkpoint = start.config, start.checkpoint
    folder = config.folder / "checkpoints"
    notes = [f"{name} was interrupted while being written: removed" for name in remove_leftovers(folder)]
    if checkpoint is None:
        return [*notes, "no complete checkpoint yet: starting from the first step"]
    for path in complete_checkpoints(folder):
        if path > checkpoint.path:  # a damaged one, which `find_start` has reported
            shutil.rmtree(path)
    if start.step < total_steps:
        for name in ("config.json", "metrics.json", "training.png"):  # they describe weights that will be replaced
            (config.folder / name).unlink(missing_ok=True)
    return [*notes, f"resuming from {checkpoint.path}"]


def how_to_resume(config: TrainConfig, ranks: Ranks = ALONE) -> str:
    """What is kept of a run that ended early, and the command that resumes it."""
    checkpoints = complete_checkpoints(config.folder / "checkpoints")
    if not checkpoints and (config.folder / "config.json").exists():
        return f"The finished model in {config.out} is kept"
    if not checkpoints:
        return f"No checkpoint had been saved: delete {config.out} and start again"
    return f"{checkpoints[-1]} is kept; resume from it with: {resume_command(config.folder, ranks.world)}"


def _is_complete(config: TrainConfig, total_steps: int, evaluates: bool) -> bool:
    """Whether every file that the end of a run writes is there, and is as it was written. A model without checksums was
    changed on purpose."""
    names = ["config.json", "training.png", *(["metrics.json"] if evaluates else [])]
    if not all((config.folder / name).exists() for name in names):
        return False
    if not any(config.folder.glob("*.safetensors")) or (has_sums(config.folder) and find_damage(config.folder, [])):
        return False
    rows = read_metrics(config.folder / METRICS_FILE)
    return not evaluates or any(row["kind"] == "eval" and row["step"] == total_steps for row in rows)
