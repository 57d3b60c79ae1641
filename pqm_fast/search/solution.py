"""A solution on its way: what the policy has written of it, and what the model thinks of its steps."""

import math
from dataclasses import dataclass
from typing import Literal

from pqm_fast.data.records import EMPTY_STEP
from pqm_fast.evaluate.aggregate import aggregate

Scores = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Solution:
    """`pieces` is the text as it was written, split at the step separator: the policy goes on from exactly this text.

    `tokens`: those of all its pieces. `end`: `stop` if the policy ended it, `length` if it was cut off, empty if more
    follows. `scores`: one for each of `steps`.
    """

    pieces: tuple[str, ...] = ()
    tokens: int = 0
    end: Literal["", "stop", "length"] = ""
    scores: Scores = ()

    @property
    def steps(self) -> tuple[str, ...]:
        """The pieces without surrounding white space and without blank ones; at least one, as in a pool."""
        return tuple(filter(None, map(str.strip, self.pieces))) or (EMPTY_STEP,)

    def value(self, how: str) -> float:
        """What it is chosen by: its scores, aggregated. -inf if it was cut off or a step has no score."""
        return -math.inf if self.end == "length" else aggregate(self.scores, how)


START = Solution()
