"""The options that a run was started with: in its config.yaml, and in each of its checkpoints."""

from collections.abc import Set
from contextlib import suppress
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from pqm_fast.common.yaml_file import read_yaml, write_yaml
from pqm_fast.data.encode import Template
from pqm_fast.data.formats import ReadOptions
from pqm_fast.errors import PQMError
from pqm_fast.train.checkpoint import Checkpoint
from pqm_fast.train.config import RUN_LENGTH, WITHOUT_EFFECT, TrainConfig
from pqm_fast.train.run_files import CONFIG_FILE


def write_config(config: TrainConfig) -> None:
    """Writes every option into config.yaml in the run folder, which `--config` reads."""
    write_yaml(config.folder / CONFIG_FILE, config.to_store())


def check_options(config: TrainConfig, checkpoint: Checkpoint | None, notes: list[str]) -> None:
    """Raises PQMError for options that are not those of the run.

    A checkpoint holds them under a checksum, so a damaged config.yaml is written again from it, and `notes` gets a
    message. Before the first checkpoint, config.yaml is all there is.
    """
    path = config.folder / CONFIG_FILE
    file_options = _read_options(path)
    started_with = file_options if checkpoint is None else _with_defaults(checkpoint.state["options"])
    if started_with is None:
        raise PQMError(f"{path}: damaged, so --resume cannot tell the options of the run; start it again elsewhere")
    repaired = ""
    if checkpoint is not None and (
        file_options is None or _differing(started_with, file_options) or _differing(file_options, started_with)
    ):
        repaired = f"{path} was damaged, and is written again from {checkpoint.path.name}"
        notes.append(repaired)
        write_yaml(path, started_with | {"out": config.out})
    current = config.to_store()
    if names := _differing(started_with, current):
        values = ", ".join(f"{name} ({started_with.get(name)!r} then, {current[name]!r} now)" for name in names)
        raise PQMError(
            f"{config.out}: --resume needs the options of the run itself; different: {values}. "
            f"{repaired}{'. ' if repaired else ''}Pass --config {path} to take them from there"
        )


def changed_options(config: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """{name: (value in the run folder, value in `config`)} of the options that differ and change the finished model,
    among them the length of the run.

    Raises PQMError if config.yaml in the folder is missing or damaged.
    """
    path = config.folder / CONFIG_FILE
    stored = _read_options(path)
    if stored is None:
        raise PQMError(f"{path}: missing or damaged, so the options of the run in {config.out} cannot be told")
    current = config.to_store()
    return {name: (stored.get(name), current[name]) for name in _differing(stored, current, WITHOUT_EFFECT)}


def config_of(options: dict[str, Any], source: str) -> TrainConfig:
    """The options that `TrainConfig.to_store` gave. Raises PQMError, naming their `source`, if they are damaged."""
    try:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        groups = {"read": ReadOptions(**values["read"]), "template": Template(**values["template"])}
        return TrainConfig(**(values | groups))
    except (TypeError, LookupError, AttributeError) as error:
        raise PQMError(f"{source}: the options of the run are damaged, or of another version ({error})") from error


def _read_options(path: Path) -> dict[str, Any] | None:
    """The options in config.yaml; None if it is not what a run writes."""
    options: Any = None
    with suppress(PQMError):
        options = read_yaml(path)
    return _with_defaults(options) if isinstance(options, dict) else None


def _with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """Adds options that did not exist yet when the run was started: it ran with what is now their default."""
    defaults = {f.name: f.default for f in fields(TrainConfig) if f.default is not MISSING}
    defaults = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
    options = options | {name: value for name, value in defaults.items() if name not in options}
    if isinstance(options.get("read"), dict):
        options["read"] = asdict(ReadOptions()) | options["read"]
    return {name: value for name, value in options.items() if name != "resume"}


def _differing(
    started_with: dict[str, Any], current: dict[str, Any], free: Set[str] = WITHOUT_EFFECT | RUN_LENGTH
) -> list[str]:
    """The options whose values differ, without those that are `free`. By default they change what a step does."""
    return [name for name in current if name not in free and started_with.get(name) != current[name]]
