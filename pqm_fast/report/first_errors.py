"""What a model does about the first error of each solution, at the threshold that other questions gave."""

from array import array
from typing import NamedTuple

import numpy as np

from pqm_fast.data.records import Record
from pqm_fast.evaluate.step_metrics import first_errors
from pqm_fast.evaluate.step_thresholds import cross_thresholds_of
from pqm_fast.scoring.stored import Scores


class FirstError(NamedTuple):
    outcome: str
    """`found`: the first step that the model calls wrong is the first wrong one; `missed`: it is a later one, or there
    is none; `early`: it is an earlier one, or no step is wrong; `alone`: no step is wrong, and none is called wrong."""
    called: int | None
    """The first step that the model calls wrong, from 0."""


class FirstErrors:
    """The labelled solutions of one file. Keeps two numbers for each step in memory, and each question once."""

    def __init__(self) -> None:
        self._keys: list[int] = []
        self._questions: list[str] = []
        self._question = dict[str, str]()
        self._lengths, self._q, self._label = array("q"), array("d"), array("d")

    def add(self, key: int, record: Record, scores: Scores) -> None:
        """Adds a record with labels under a key of its own; records without labels are left out."""
        if record.labels is None:
            return
        self._keys.append(key)
        self._questions.append(self._question.setdefault(record.prompt, record.prompt))
        self._lengths.append(len(record.steps))
        self._q.extend(np.nan if q is None else q for q in scores)
        self._label.extend(np.nan if y is None else y for y in record.labels)

    def outcomes(self) -> dict[int, FirstError]:
        """{key: what the model does} for solutions with a step that has both a score and a label.

        Each fifth of the questions is judged with the threshold with the highest `first_error_accuracy` on the other
        four (`cross_thresholds`). Empty where they give no threshold.
        """
        q, label = np.array(self._q), np.array(self._label)
        count = len(self._keys)
        trajectory = np.repeat(np.arange(count), np.array(self._lengths, dtype=np.int64))
        thresholds = cross_thresholds_of((q, label, trajectory), self._questions)
        if thresholds is None:
            return {}
        wrong, called = first_errors((q, label, trajectory), count, thresholds.each("first_error_accuracy"))
        has_steps = np.bincount(trajectory[~(np.isnan(q) | np.isnan(label))], minlength=count) > 0
        start = np.searchsorted(trajectory, np.arange(count))
        found: dict[int, FirstError] = {}
        for i in np.flatnonzero(has_steps).tolist():
            step = None if called[i] < 0 else int(called[i] - start[i])
            found.setdefault(self._keys[i], FirstError(_outcome(int(wrong[i]), int(called[i])), step))
        return found


def _outcome(wrong: int, called: int) -> str:
    """From the first wrong step and the first one that is called wrong, -1 for none."""
    if wrong == called:
        return "alone" if wrong < 0 else "found"
    return "early" if called >= 0 and (wrong < 0 or called < wrong) else "missed"
