"""Evaluations that can be compared: those of the same data."""

from collections.abc import Sequence
from dataclasses import dataclass, field
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
    """A result does not name its data; figures that no model can change tell whether two are of the same."""
    groups: list[Group] = []
    for i, run in enumerate(runs):
        for name, result in run.evaluations.items():
            key = _data_key(result)
            group = next((group for group in groups if group.key == key and i not in group.by_run), None)
            if group is None:
                group = Group([], key)
                groups.append(group)
            group.by_run[i] = result
            if name not in group.names:
                group.names.append(name)
    if len(groups) > 1:
        for group in groups:
            group.title = ", ".join(group.names[:3]) + (", ..." if len(group.names) > 3 else "")
    return groups


def _data_key(result: Evaluation) -> tuple[Any, ...]:
    own = result.get("overall", {})
    accuracy, share = own.get("mean_accuracy", {}).get("mean"), result.get("steps", {}).get("share_correct")
    known = (result.get("records"), own.get("questions"), own.get("candidates"))
    return (*known, *(None if value is None else round(value, 9) for value in (accuracy, share)))
