"""What did not fit the context while files were scored."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class CutOff:
    """Solutions that do not fit the context: how many, and how many of them have no score at all."""

    limit: str = ""
    """The limit that they met, in words."""
    records: int = 0
    unscored: int = 0

    def add(self, scores: Sequence[float | None]) -> None:
        self.records += None in scores
        self.unscored += all(q is None for q in scores)

    def __str__(self) -> str:
        one = self.records == 1
        last = "last steps" if self.unscored < self.records else "steps"
        text = f"{self.records:,} {'record does' if one else 'records do'} not fit {self.limit}: null stands for the "
        text += f"scores of {'its' if one else 'their'} {last}"
        if 0 < self.unscored < self.records:
            text += f", of {self.unscored:,} for all of them"
        return text
