"""The choice of beam search: which partial solutions of one question are continued."""

import math
from collections.abc import Sequence

from pqm_fast.search.solution import START, Solution


class Tree:
    """Keeps the `keep` best solutions of each round. A round writes `width` continuations of them.

    This is beam search as in Snell et al. (arXiv 2408.03314, section 5.2) with N = `width` and M = `width` / `keep`. A
    whole solution keeps its place among the best as long as it is one of them; the search ends when all of them are
    whole. `how` aggregates step scores. `distinct`: of solutions with the same steps, the first alone is kept.
    """

    def __init__(self, width: int, keep: int, how: str, distinct: bool = False):
        self.width, self.keep, self.how, self.distinct = width, keep, how, distinct
        self.kept: list[Solution] = [START]
        self.ended: list[Solution] = []
        """Every solution that the policy has ended or that was cut off, in the order in which they were written."""
        self.idle: list[Solution] = []

    @property
    def unfinished(self) -> list[Solution]:
        """The kept solutions that have not ended, the best first."""
        return [solution for solution in self.kept if not solution.end]

    @property
    def best(self) -> float:
        """The score of the best of them; -inf if there is none, or nothing is written yet."""
        return max((solution.value(self.how) for solution in self.unfinished), default=-math.inf)

    def parents(self, count: int) -> list[Solution]:
        """The solutions to continue, each as often as it has continuations: up to `count` in all, spread evenly, the
        best ones first. Empty once the search has ended."""
        unfinished = self.unfinished
        count = min(count, self.width) if unfinished else 0
        self.idle = [s for s in self.kept if s.end] + unfinished[count:]
        return [
            parent
            for i, parent in enumerate(unfinished[:count])
            for _ in range(count // len(unfinished) + (i < count % len(unfinished)))
        ]

    def take(self, children: Sequence[Solution]) -> None:
        """Takes the continuations, with their scores, and chooses the solutions of the next round."""
        self.ended += [child for child in children if child.end]
        pool = [*self.idle, *children]
        if self.distinct:
            first: dict[tuple[tuple[str, ...], str], Solution] = {}
            for solution in pool:
                first.setdefault((solution.steps, solution.end), solution)
            pool = list(first.values())
        self.kept = sorted(pool, key=lambda solution: -solution.value(self.how))[: self.keep]
