"""Going on with a run: which one, from where, and how a user is told to."""

import shlex
from contextlib import suppress
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from pqm_fast.common.checksums import find_damage, has_sums
from pqm_fast.common.files import remove_leftovers
from pqm_fast.common.lock import is_empty
from pqm_fast.common.yaml_file import read_yaml, write_yaml
from pqm_fast.data.formats import ReadOptions
from pqm_fast.errors import PQMError
from pqm_fast.train.checkpoint import Checkpoint, complete_checkpoints, newest_intact
from pqm_fast.train.config import LENGTH, WITHOUT_EFFECT, TrainConfig
from pqm_fast.train.log import read_metrics


def find_checkpoint(config: TrainConfig, notes: list[str]) -> Checkpoint | None:
    """Where a run with these options begins: None at the first step, else after the step of a checkpoint.

    `notes` is told of checkpoints that are damaged. Raises PQMError for a run folder that cannot be used so.
    """
    stored = config.folder / "config.yaml"
    remove_leftovers(config.folder)  # of a run that was killed while it wrote its config.yaml
    if not config.resume:
        if not is_empty(config.folder):
            what = "already holds a run" if stored.exists() else "is not empty"
            raise PQMError(f"{config.out}: {what}; choose another --out, or --resume to go on with the run in it")
        return None
    found, damaged = newest_intact(config.folder / "checkpoints")
    if found is None and not stored.exists():
        raise PQMError(f"{config.out}: no run to resume here (no config.yaml); start it without --resume")
    _check_options(config, found, notes)
    notes += [f"{path.name} is damaged ({reason}): left out" for path, reason in damaged.items()]
    if found is None and (config.folder / "config.json").exists():
        raise PQMError(
            f"{config.out}: holds its final weights, and no checkpoint to go on from (save_every was 0). Evaluate them "
            f"with `pqm-fast evaluate --model {config.out}`, or train further with --model {config.out} and another "
            "--out"
        )
    return found


def check_length(config: TrainConfig, begun: Checkpoint, total_steps: int, evaluates: bool) -> str | None:
    """What to tell of a run that goes on to more steps than it was begun for; None if it is as long as before.

    Raises PQMError for a run that has nothing left to do, or is to be shorter.
    """
    then = begun.state["total_steps"]
    if total_steps < then:
        raise PQMError(
            f"{config.out}: the run was begun for {then:,} steps, and these options ask for {total_steps:,}; a run can "
            "be resumed to its end or beyond (--max-steps, --epochs)"
        )
    if total_steps > then:
        return (
            f"extended from {then:,} to {total_steps:,} steps: from step {begun.state['step'] + 1:,} on, the learning "
            f"rate is that of a run of {total_steps:,} steps"
        )
    if _complete(config, total_steps, evaluates):
        raise PQMError(
            f"{config.out}: the run is complete, there is nothing to resume; for more steps than {then:,} give "
            "--max-steps or --epochs"
        )
    return None


def how_to_resume(config: TrainConfig) -> str:
    """What is kept of a run that ended early, and the command that goes on with it."""
    found = complete_checkpoints(config.folder / "checkpoints")
    if not found:
        return f"No checkpoint had been saved: delete {config.out} and start again"
    command = shlex.join(["pqm-fast", "train", "--config", str(config.folder / "config.yaml"), "--resume"])
    return f"{found[-1]} is kept; go on from it with: {command}"


def _complete(config: TrainConfig, total_steps: int, evaluates: bool) -> bool:
    """Whether everything is there that the end of a run writes, and is as it was written. A model without checksums
    was changed on purpose."""
    names = ["config.json", "training.png", *(["metrics.json"] if evaluates else [])]
    if not all((config.folder / name).exists() for name in names):
        return False
    if not any(config.folder.glob("*.safetensors")) or (has_sums(config.folder) and find_damage(config.folder, [])):
        return False
    rows = read_metrics(config.folder / "metrics.jsonl")
    return not evaluates or any(row["kind"] == "eval" and row["step"] == total_steps for row in rows)


def _check_options(config: TrainConfig, begun: Checkpoint | None, notes: list[str]) -> None:
    """Raises PQMError for options that are not those of the run. A checkpoint says which they were, with a checksum;
    before the first one, config.yaml does. One that is damaged is written again."""
    path = config.folder / "config.yaml"
    stored = _read_options(path)
    then = stored if begun is None else _filled(begun.state["options"])
    if then is None:
        raise PQMError(f"{path}: damaged, so --resume cannot tell the options of the run; start it again elsewhere")
    mended = ""
    if begun is not None and (stored is None or _changed(then, stored) or _changed(stored, then)):
        mended = f"{path} was damaged, and is written again from {begun.path.name}"
        notes.append(mended)
        write_yaml(path, then | {"out": config.out})
    now = config.to_store()
    if changed := _changed(then, now):
        values = ", ".join(f"{name} ({then.get(name)!r} then, {now[name]!r} now)" for name in changed)
        raise PQMError(
            f"{config.out}: --resume needs the options of the run itself; different: {values}. "
            f"{mended}{'. ' if mended else ''}Give --config {path} to take them from there"
        )


def _read_options(path: Path) -> dict[str, Any] | None:
    """What config.yaml holds; None if that is not as a run writes it."""
    found: Any = None
    with suppress(PQMError):
        found = read_yaml(path)
    return _filled(found) if isinstance(found, dict) else None


def _filled(options: dict[str, Any]) -> dict[str, Any]:
    """An option that is newer than the run had its default then."""
    defaults = {f.name: f.default for f in fields(TrainConfig) if f.default is not MISSING}
    options = options | {name: value for name, value in defaults.items() if name not in options}
    if isinstance(options.get("read"), dict):
        options["read"] = asdict(ReadOptions()) | options["read"]
    return {name: value for name, value in options.items() if name != "resume"}


def _changed(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [name for name in now if name not in WITHOUT_EFFECT | LENGTH and then.get(name) != now[name]]
