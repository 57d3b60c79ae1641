"""What a path given to `report` holds: runs of training, results of `evaluate`, scored solutions."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pqm_fast.common.yaml_file import read_yaml
from pqm_fast.errors import PQMError
from pqm_fast.scoring.stored import SCORED_BY
from pqm_fast.train.metrics_file import read_metrics


@dataclass(slots=True)
class Run:
    """One row of the report: a model. Each part may be missing, not all of them."""

    path: Path
    """The folder of the training run, else the model that results name, else the file of results or scores."""
    name: str = ""
    """As given, else the end of `path` that no other run shares."""
    options: dict[str, Any] = field(default_factory=dict)
    """config.yaml, flat: `template.step_token` for an option in a group."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """The rows of metrics.jsonl."""
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What `evaluate` wrote, by the end of the file's path, without its ending, that no other one shares."""
    scored: list[Path] = field(default_factory=list)
    """Files that `score` wrote."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One of a training run, a result or a scored file."""

    path: Path
    model: str | None = None
    """That of a training run is its folder; else what the file says (`data.scores.model_name`)."""
    metrics: list[dict[str, Any]] | None = None
    evaluation: dict[str, Any] | None = None


def find(paths: Sequence[str]) -> list[Run]:
    """The runs in `paths`, each once, in the order given.

    A path is a training run's folder, a folder with results or scored files, a file of either, or a folder of such
    folders, as `demo` makes one; NAME=PATH gives what is there a name. Files are of one run if they have one name,
    or else one model: the one that they name, whose folder may be that of a training run. A file whose model is
    not that of a training run found is of the run whose folder it lies in. A file that names no model and lies in no
    run's folder belongs to the run RUN if it is called RUN.json or RUN.jsonl.

    Raises:
        PQMError: a path that does not exist or holds nothing of this, or a file that cannot be read.
    """
    if not paths:
        raise PQMError("runs: name at least one folder of a run, file of results or file of scored solutions")
    parts: list[tuple[str, _Part]] = []
    for given in paths:
        name, path = _named(given)
        if not path.exists():
            raise PQMError(f"{path}: no such file or folder")
        own = _under(path) if path.is_dir() else [_file(path)]
        if not own:
            raise PQMError(
                f"{path}: nothing to report, neither here nor in the folders in it: no metrics.jsonl (pqm-fast train),"
                " no results (pqm-fast evaluate --out), no scored solutions (pqm-fast score)"
            )
        parts += [(name, part) for part in own]
    return _joined(parts)


def _named(given: str) -> tuple[str, Path]:
    name, equals, path = given.partition("=")
    return (name, Path(path)) if equals and name and not Path(given).exists() else ("", Path(given))


def _joined(parts: list[tuple[str, _Part]]) -> list[Run]:
    trained = {part.model for _, part in parts if part.metrics}
    keys = [_key(part, trained) for _, part in parts]
    name_of = {key: name for key, (name, _) in zip(keys, parts, strict=True) if name}
    unnamed = list(dict.fromkeys(key for key in keys if key not in name_of))
    name_of |= dict(zip(unnamed, _names([Path(key) for key in unnamed]), strict=True))
    found: dict[str, Run] = {}
    for key, (name, part) in zip(keys, parts, strict=True):
        name = name or name_of[key]
        run = found.setdefault(name, Run(Path(key), name))
        path = part.path.resolve()
        if part.metrics is not None:
            run.path, run.metrics, run.options = part.path, part.metrics, _options(part.path / "config.yaml")
        elif part.evaluation is not None:
            run.evaluations[str(path.with_suffix(""))] = part.evaluation
        elif path not in [other.resolve() for other in run.scored]:
            run.scored.append(part.path)
    for run in found.values():
        ends = _names([Path(path) for path in run.evaluations])
        run.evaluations = dict(zip(ends, run.evaluations.values(), strict=True))
    return list(found.values())


def _key(part: _Part, trained: set[str | None]) -> str:
    """The model that a part is of."""
    path = part.path.resolve()
    in_run = (path.parent / "metrics.jsonl").exists()
    if part.model is not None and (part.model in trained or not in_run):
        return part.model
    return str(path.parent if in_run else path.with_suffix(""))


def _under(folder: Path) -> list[_Part]:
    own = _in_folder(folder)
    if not any(part.metrics for part in own):
        own += [part for child in sorted(folder.iterdir()) if child.is_dir() for part in _in_folder(child)]
    return own


def _in_folder(folder: Path) -> list[_Part]:
    parts = []
    if metrics := _metrics(folder / "metrics.jsonl"):
        parts.append(_Part(folder, str(folder.resolve()), metrics=metrics))
    for path in sorted(folder.glob("*.json")):
        if _is_evaluation(value := _json(path)):
            parts.append(_evaluation(path, value))
    for path in sorted(folder.glob("*.jsonl")):
        if (row := _scored_row(path)) is not None:
            parts.append(_Part(path, _text(row.get(SCORED_BY))))
    return parts


def _file(path: Path) -> _Part:
    """A file without results must hold solutions; when they are read, it is said if they cannot be."""
    if path.suffix == ".json" and _is_evaluation(value := _json(path)):
        return _evaluation(path, value)
    if path.name == "metrics.jsonl":
        raise PQMError(f"{path}: give the run's folder, {path.parent}")
    return _Part(path, _text((_scored_row(path) or {}).get(SCORED_BY)))


def _evaluation(path: Path, value: dict[str, Any]) -> _Part:
    return _Part(path, _text(value.get("model")), evaluation=value)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)  # NaN: no figure
    except (ValueError, RecursionError) as error:
        raise PQMError(f"{path}: damaged, not JSON: {error}") from error


def _is_evaluation(value: Any) -> bool:
    if not isinstance(value, dict) or "records" not in value:
        return False
    return isinstance(value.get("steps"), dict) or {"overall", "policies"} <= value.keys()


def _metrics(path: Path) -> list[dict[str, Any]]:
    rows = read_metrics(path)
    if not rows and path.exists() and path.stat().st_size:
        raise PQMError(f"{path}: not the metrics of `pqm-fast train`: no line with `kind` and `step` is intact")
    return rows


def _scored_row(path: Path) -> dict[str, Any] | None:
    """The first line of a file of scored solutions, None for any other: a folder may hold any JSON lines."""
    with open(path, encoding="utf-8", errors="replace") as file:
        line = file.readline()
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and "completions" in row and "scores" in row else None


def _options(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise PQMError(f"{path}: damaged, it holds no options")
    return dict(_flat(values))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + str(name), value


def _names(paths: list[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [path.resolve().parts for path in paths]
    names = []
    for own in parts:
        k = next(k for k in range(1, len(own) + 1) if sum(other[-k:] == own[-k:] for other in parts) == 1)
        names.append("/".join(own[-k:]).replace("//", "/"))
    return names
