"""Counts the solutions that did not fit the context when files were scored."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class CutOff:
    """How many solutions lost steps because they did not fit the context, and how many have no score at all."""

    limit: str = ""
    """The limit that they exceed, in words."""
    records: int = 0
    unscored: int = 0

    def add(self, scores: Sequence[float | None]) -> None:
        self.records += None in scores
        self.unscored += all(q is None for q in scores)

    def __str__(self) -> str:
        singular = self.records == 1
        lost_steps = "last steps" if self.unscored < self.records else "steps"
        text = f"{self.records:,} {'record does' if singular else 'records do'} not fit {self.limit}: the scores of "
        text += f"{'its' if singular else 'their'} {lost_steps} are null"
        if 0 < self.unscored < self.records:
            text += f", and {self.unscored:,} of these records have no score at all"
        return text
