"""Finds the rows of a report: the parts of runs under the given paths, joined by the model that they belong to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pqm_fast.errors import PQMError
from pqm_fast.report.parts import Evaluation, Part, Training, find_parts


@dataclass(slots=True)
class Run:
    """A row of the report: a model with at least one of a training run, results and scored solutions."""

    path: Path
    """The folder of the training run, else the model that results name, else the file of results or scores."""
    name: str = ""
    """As given, else the end of `path` that no other run shares."""
    options: dict[str, Any] = field(default_factory=dict)
    """As in `Training`."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """As in `Training`."""
    heads: list[dict[str, Any]] = field(default_factory=list)
    """As in `Training`."""
    probe: dict[str, Any] = field(default_factory=dict)
    """As in `Training`."""
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Results of `evaluate`, by the end of the file's path, without its suffix, that no other one shares."""
    scored: list[Path] = field(default_factory=list)
    """Files that `score` wrote."""


def find_runs(paths: Sequence[str]) -> list[Run]:
    """The runs in `paths`, each once, in the given order.

    A path is the folder of a training run, a folder with results or scored files, a file of either, or a folder of such
    folders, like the one that `demo` makes. NAME=PATH names what is there. Files belong to one run if they have one
    name, or else if they name one model, whose folder may be that of a training run. A file in a run's folder belongs
    to that run, unless it names the model of another training run in `paths`. A file that names no model and is in no
    run's folder belongs to the run RUN if it is called RUN.json or RUN.jsonl.

    Raises:
        PQMError: a path does not exist or holds nothing to report, or a file cannot be read.
    """
    if not paths:
        raise PQMError("runs: name at least one folder of a run, file of results or file of scored solutions")
    named_parts: list[tuple[str, Part]] = []
    for argument in paths:
        name, path = _split_name(argument)
        named_parts += [(name, part) for part in find_parts(path)]
    return _join(named_parts)


def _split_name(argument: str) -> tuple[str, Path]:
    """(name or empty, path) of NAME=PATH or PATH, which may have an equals sign in it."""
    name, equals, path = argument.partition("=")
    return (name, Path(path)) if equals and name and not Path(argument).exists() else ("", Path(argument))


def _join(named_parts: list[tuple[str, Part]]) -> list[Run]:
    trained = {part.model for _, part in named_parts if isinstance(part, Training)}
    keys = [_key(part, trained) for _, part in named_parts]
    name_of = {key: name for key, (name, _) in zip(keys, named_parts, strict=True) if name}
    unnamed = list(dict.fromkeys(key for key in keys if key not in name_of))
    name_of |= dict(zip(unnamed, _distinct_ends([Path(key) for key in unnamed]), strict=True))
    runs: dict[str, Run] = {}
    for key, (name, part) in zip(keys, named_parts, strict=True):
        name = name or name_of[key]
        run = runs.setdefault(name, Run(Path(key), name))
        path = part.path.resolve()
        if isinstance(part, Training):
            run.path, run.metrics, run.options = part.path, part.metrics, part.options
            run.heads, run.probe = part.heads, part.probe
        elif isinstance(part, Evaluation):
            run.evaluations[str(path.with_suffix(""))] = part.results
        elif path not in [other.resolve() for other in run.scored]:
            run.scored.append(part.path)
    for run in runs.values():
        ends = _distinct_ends([Path(path) for path in run.evaluations])
        run.evaluations = dict(zip(ends, run.evaluations.values(), strict=True))
    return list(runs.values())


def _key(part: Part, trained: set[str]) -> str:
    """A key that is the same for all parts of one model, as far as the files and folders show."""
    path = part.path.resolve()
    in_run = (path.parent / "metrics.jsonl").exists()
    if part.model is not None and (part.model in trained or not in_run):
        return part.model
    return str(path.parent if in_run else path.with_suffix(""))


def _distinct_ends(paths: list[Path]) -> list[str]:
    """The shortest end of each path that no other path has."""
    all_parts = [path.resolve().parts for path in paths]
    ends = []
    for parts in all_parts:
        k = next(k for k in range(1, len(parts) + 1) if sum(other[-k:] == parts[-k:] for other in all_parts) == 1)
        ends.append("/".join(parts[-k:]).replace("//", "/"))
    return ends
