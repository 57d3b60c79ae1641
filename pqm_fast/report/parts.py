"""Finds the parts of runs under a path: training folders, results of `evaluate` and files of scored solutions."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pqm_fast.common.options import flat
from pqm_fast.common.yaml_file import read_yaml
from pqm_fast.errors import PQMError
from pqm_fast.probe.files import HEADS_FILE, SUMMARY_FILE
from pqm_fast.scoring.stored import SCORED_BY
from pqm_fast.train.metrics_file import read_lines, read_metrics, read_starts


@dataclass(frozen=True, slots=True)
class Training:
    """The folder of a training run or of a probe."""

    path: Path
    metrics: list[dict[str, Any]]
    """The rows of metrics.jsonl."""
    options: dict[str, Any] = field(default_factory=dict)
    """config.yaml, flat: `template.step_token` for an option in a group."""
    heads: list[dict[str, Any]] = field(default_factory=list)
    """The rows of heads.jsonl, in the folder of a probe."""
    probe: dict[str, Any] = field(default_factory=dict)
    """probe.json: model, decoder_layers, layers, chosen, select and so on."""

    @property
    def model(self) -> str:
        return str(self.path.resolve())


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A file of results that `evaluate` wrote."""

    path: Path
    results: dict[str, Any]

    @property
    def model(self) -> str | None:
        """The model that the file names (`scoring.stored.model_name`), if it names one."""
        return _text(self.results.get("model"))


@dataclass(frozen=True, slots=True)
class Scored:
    """A file of solutions that `score` wrote."""

    path: Path
    model: str | None
    """As in `Evaluation`."""


Part = Training | Evaluation | Scored
HEAD_FIELDS = {"loss", "layer", "zeta", "compare_weight", "learning_rate", "seed", "held_out"}


def find_parts(path: Path) -> list[Part]:
    """What a file is, or what a folder holds; without a training run in the folder, its subfolders too.

    Raises:
        PQMError: the path does not exist or holds nothing to report, or a file cannot be read.
    """
    if not path.exists():
        raise PQMError(f"{path}: no such file or folder")
    if not path.is_dir():
        return [_in_file(path)]
    parts = _in_folder(path)
    if not any(isinstance(part, Training) for part in parts):
        parts += [part for child in sorted(path.iterdir()) if child.is_dir() for part in _in_folder(child)]
    if not parts:
        raise PQMError(
            f"{path}: nothing to report, neither here nor in the folders in it: no metrics.jsonl (pqm-fast train),"
            " no results (pqm-fast evaluate --out), no scored solutions (pqm-fast score)"
        )
    return parts


def _in_folder(folder: Path) -> list[Part]:
    parts: list[Part] = []
    if metrics := _metrics(folder / "metrics.jsonl"):
        heads, probe = _heads(folder / HEADS_FILE), folder / SUMMARY_FILE
        summary = _json(probe) if heads and probe.exists() else {}
        parts.append(Training(folder, metrics, _options(folder / "config.yaml"), heads, summary))
    for path in sorted(folder.glob("*.json")):
        if _is_evaluation(value := _json(path)):
            parts.append(Evaluation(path, value))
    for path in sorted(folder.glob("*.jsonl")):
        if (row := _first_scored_row(path)) is not None:
            parts.append(Scored(path, _text(row.get(SCORED_BY))))
    return parts


def _in_file(path: Path) -> Part:
    """Treats a file without results as scored solutions. Reading them later reports an error if they are not."""
    if path.suffix == ".json" and _is_evaluation(value := _json(path)):
        return Evaluation(path, value)
    if path.name == "metrics.jsonl":
        raise PQMError(f"{path}: name the run's folder instead, {path.parent}")
    return Scored(path, _text((_first_scored_row(path) or {}).get(SCORED_BY)))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)  # NaN is a missing figure
    except (ValueError, RecursionError) as error:
        raise PQMError(f"{path}: damaged, not JSON: {error}") from error


def _is_evaluation(value: Any) -> bool:
    if not isinstance(value, dict) or "records" not in value:
        return False
    return isinstance(value.get("steps"), dict) or {"overall", "policies"} <= value.keys()


def _metrics(path: Path) -> list[dict[str, Any]]:
    rows = read_metrics(path)
    if not rows and path.exists() and path.stat().st_size and not read_starts(path):
        raise PQMError(f"{path}: not the metrics of `pqm-fast train`: no line with `kind` and `step` is intact")
    return rows


def _heads(path: Path) -> list[dict[str, Any]]:
    """The rows of heads.jsonl; none without the file."""
    rows = [row for _, row in read_lines(path)]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not row.keys() >= HEAD_FIELDS:
            raise PQMError(f"{path}, line {number}: damaged, or not a head of `pqm-fast probe`")
    return rows


def _first_scored_row(path: Path) -> dict[str, Any] | None:
    """The first line of a file of scored solutions. None for any other file: a folder may hold any JSON lines."""
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
    return flat(values)
