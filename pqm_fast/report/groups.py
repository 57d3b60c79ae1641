"""Evaluations that can be compared: those of the same data."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pqm_fast.report.find import Run

Evaluation = dict[str, Any]


@dataclass(slots=True)
class Group:
    """Results on the same data: at most one of each run."""

    names: list[str]
    key: tuple[Any, ...]
    by_run: dict[int, Evaluation] = field(default_factory=dict)
    title: str = ""
    """Empty if there is one group only."""


def evaluations(runs: Sequence[Run]) -> list[Group]:
    """Two results may name the same data by files of other names (scored ones): figures that no model can change tell
    whether they are of the same."""
    groups: list[Group] = []
    for i, run in enumerate(runs):
        for name, result in run.evaluations.items():
            key = _data_key(result)
            group = next((group for group in groups if group.key == key and i not in group.by_run), None)
            if group is None:
                group = Group([], key)
                groups.append(group)
            group.by_run[i] = result
            name = _without(name, run.name)
            if name not in group.names:
                group.names.append(name)
    if len(groups) > 1:
        data = [_data_name(group) for group in groups]
        for group, own in zip(groups, data, strict=True):
            names = ", ".join(group.names[:3]) + (", ..." if len(group.names) > 3 else "")
            group.title = own if own and data.count(own) == 1 else names
    return groups


def _data_name(group: Group) -> str:
    """The files that all its results are of, as `evaluate` was given them; empty if they differ or do not say."""
    known = {tuple(Path(str(name)).name for name in result.get("data") or ()) for result in group.by_run.values()}
    return ", ".join(known.pop()) if len(known) == 1 else ""


def _without(name: str, run: str) -> str:
    """What a file's name says beside its run's: `pool` for `RUN.pool`."""
    return re.sub(rf"^{re.escape(run)}[ ._-]+|[ ._-]+{re.escape(run)}$", "", name)


def _data_key(result: Evaluation) -> tuple[Any, ...]:
    own = result.get("overall", {})
    accuracy, share = own.get("mean_accuracy", {}).get("mean"), result.get("steps", {}).get("share_correct")
    known = (result.get("records"), own.get("questions"), own.get("candidates"))
    return (*known, *(None if value is None else round(value, 9) for value in (accuracy, share)))
