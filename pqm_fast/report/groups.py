"""Groups evaluations that can be compared, because they use the same data."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pqm_fast.report.runs import Run

Results = dict[str, Any]


@dataclass(slots=True)
class Group:
    """Results on the same data, at most one of each run."""

    names: list[str]
    """The names of the files of results, without those of their runs."""
    key: tuple[Any, ...]
    by_run: dict[int, Results] = field(default_factory=dict)
    """The results, by the index of the run."""
    title: str = ""
    """Empty if there is only one group."""


def group_evaluations(runs: Sequence[Run]) -> list[Group]:
    """The evaluations of all runs, grouped by figures that depend on the data but not on the model.

    The names of the data files do not help: each model's scored file of the same data has its own name.
    """
    groups: list[Group] = []
    for i, run in enumerate(runs):
        for name, results in run.evaluations.items():
            key = _data_key(results)
            group = next((group for group in groups if group.key == key and i not in group.by_run), None)
            if group is None:
                group = Group([], key)
                groups.append(group)
            group.by_run[i] = results
            name = _without_run(name, run.name)
            if name not in group.names:
                group.names.append(name)
    if len(groups) > 1:
        data_names = [_data_name(group) for group in groups]
        for group, data_name in zip(groups, data_names, strict=True):
            names = ", ".join(group.names[:3]) + (", ..." if len(group.names) > 3 else "")
            group.title = data_name if data_name and data_names.count(data_name) == 1 else names
    return groups


def _data_name(group: Group) -> str:
    """The data files that all its results name; empty if they differ or are not known."""
    file_names = {
        tuple(Path(str(name)).name for name in results.get("data") or ()) for results in group.by_run.values()
    }
    return ", ".join(file_names.pop()) if len(file_names) == 1 else ""


def _without_run(name: str, run: str) -> str:
    """The name of a file without that of its run: `pool` for `RUN.pool`."""
    return re.sub(rf"^{re.escape(run)}[ ._-]+|[ ._-]+{re.escape(run)}$", "", name)


def _data_key(results: Results) -> tuple[Any, ...]:
    overall = results.get("overall", {})
    counts = (results.get("records"), overall.get("questions"), overall.get("candidates"))
    shares = (overall.get("mean_accuracy", {}).get("mean"), results.get("steps", {}).get("share_correct"))
    return (*counts, *(None if share is None else round(share, 9) for share in shares))
