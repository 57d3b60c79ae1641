"""What a path given to `report` holds: runs of training, results of `evaluate`, scored solutions."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pqm_fast.errors import PQMError
from pqm_fast.train.log import read_metrics
from pqm_fast.yaml_file import read_yaml


@dataclass(slots=True)
class Run:
    """One row of the report; each part may be missing, not all of them."""

    path: Path
    """The folder of the training run, else the file of results or scores."""
    name: str = ""
    """The end of `path` that no other run shares."""
    options: dict[str, Any] = field(default_factory=dict)
    """config.yaml, flat: `template.step_token` for an option in a group."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """The rows of metrics.jsonl."""
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What `evaluate` wrote, by the file's name without its ending."""
    scored: list[Path] = field(default_factory=list)
    """Files that `score` wrote."""


def find(paths: Sequence[str]) -> list[Run]:
    """The runs in `paths`, each once, in the order given.

    A path is a training run's folder; a folder with results or scored files (files of one name make one run); a file
    of either; or a folder of such folders, as `demo` makes one.

    Raises:
        PQMError: a path that does not exist or holds nothing of this, or a file that cannot be read.
    """
    if not paths:
        raise PQMError("runs: name at least one folder of a run, file of results or file of scored solutions")
    found: dict[Path, Run] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise PQMError(f"{path}: no such file or folder")
        own = _under(path) if path.is_dir() else [_file(path)]
        if not own:
            raise PQMError(
                f"{path}: nothing to report, neither here nor in the folders in it: no metrics.jsonl (pqm-fast train),"
                " no results (pqm-fast evaluate --out), no scored solutions (pqm-fast score)"
            )
        for run in own:  # RUN.json and RUN.jsonl beside the folder RUN are about the same run
            known = found.setdefault(run.path.resolve(), run)
            known.options = known.options or run.options
            known.metrics = known.metrics or run.metrics
            known.evaluations |= run.evaluations
            known.scored += [path for path in run.scored if path not in known.scored]
    runs = list(found.values())
    for run, name in zip(runs, _names([run.path for run in runs]), strict=True):
        run.name = name
    return runs


def _under(folder: Path) -> list[Run]:
    own = list(_in_folder(folder))
    if not any(run.metrics for run in own):
        own += [run for child in sorted(folder.iterdir()) if child.is_dir() for run in _in_folder(child)]
    return own


def _in_folder(folder: Path) -> Iterator[Run]:
    """The training run with what was evaluated and scored in its folder, else a run for each name of a file."""
    evaluations = {path: value for path in sorted(folder.glob("*.json")) if _is_evaluation(value := _json(path))}
    scored = [path for path in sorted(folder.glob("*.jsonl")) if _has_scores(path)]
    if metrics := _metrics(folder / "metrics.jsonl"):
        by_name = {path.stem: value for path, value in evaluations.items()}
        yield Run(folder, options=_options(folder / "config.yaml"), metrics=metrics, evaluations=by_name, scored=scored)
        return
    alone: dict[Path, Run] = defaultdict(lambda: Run(Path()))
    for path, value in evaluations.items():
        alone[path.with_suffix("")].evaluations = {path.stem: value}
    for path in scored:
        alone[path.with_suffix("")].scored = [path]
    for path, run in alone.items():
        run.path = path
        yield run


def _file(path: Path) -> Run:
    """A file without results must hold solutions; when they are read, it is said if they cannot be."""
    if path.suffix == ".json" and _is_evaluation(value := _json(path)):
        return Run(path.with_suffix(""), evaluations={path.stem: value})
    if path.name == "metrics.jsonl":
        raise PQMError(f"{path}: give the run's folder, {path.parent}")
    return Run(path.with_suffix(""), scored=[path])


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


def _has_scores(path: Path) -> bool:
    """Judged by the first line: a folder may hold any other JSON lines."""
    with open(path, encoding="utf-8", errors="replace") as file:
        line = file.readline()
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and "completions" in row and "scores" in row


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
