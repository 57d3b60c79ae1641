"""What is written for one question, round by round: beam search, DVTS, and plain samples for comparison."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from pqm_fast.search.options import SearchConfig
from pqm_fast.search.solution import START, Solution
from pqm_fast.search.tree import Tree


class Budget:
    """The tokens that the policy may write for one question, and those that it has written. No limit: None."""

    def __init__(self, limit: int | None):
        self.limit, self.used, self.longest = limit, 0, 0

    def take(self, tokens: int) -> None:
        """Counts a continuation. The shortest, the end alone, is one token."""
        self.used += tokens
        self.longest = max(self.longest, tokens)

    def room(self, wanted: int) -> int:
        """How many of `wanted` continuations fit, if none is longer than the longest so far."""
        if self.limit is None or not self.longest:
            return wanted
        return max(0, min(wanted, (self.limit - self.used) // self.longest))


class Search:
    """Beam search (one tree), or DVTS: trees that do not compete, of which each continues its best solution alone.

    DVTS is that of Beeching et al. ("Scaling test-time compute with open models", 2024), with N / M trees.
    """

    by_step = True

    def __init__(self, config: SearchConfig):
        best, distinct = config.n // config.m, config.distinct
        if config.method == "beam":
            self.trees = [Tree(config.n, best, config.aggregate, distinct)]
        else:
            self.trees = [Tree(config.m, 1, config.aggregate, distinct) for _ in range(best)]
        self.budget = Budget(config.budget_tokens)
        self.max_steps, self.rounds = config.max_steps, 0
        self.shares: list[int] = []

    def parents(self) -> list[Solution]:
        """The solutions to continue in the next round, each as often as it has continuations. Empty at the end."""
        if self.rounds == self.max_steps:
            return []
        self.rounds += 1
        wanted = [len(tree.parents(tree.width)) for tree in self.trees]
        room = self.budget.room(sum(wanted))
        self.shares = [min(share, max(0, room - sum(wanted[:i]))) for i, share in enumerate(wanted)]
        return [parent for tree, share in zip(self.trees, self.shares, strict=True) for parent in tree.parents(share)]

    def take(self, children: Sequence[Solution]) -> None:
        """Takes the continuations of `parents`, in that order, with their scores."""
        rest = iter(children)
        for tree, share in zip(self.trees, self.shares, strict=True):
            tree.take(list(islice(rest, share)))

    def solutions(self) -> list[Solution]:
        """The solutions of the search: those that have ended, and the kept ones that were not continued to their end,
        as cut off."""
        return [
            solution
            for tree in self.trees
            for solution in [*tree.ended, *(replace(s, end="length") for s in tree.kept if not s.end and s != START)]
        ]


class Samples:
    """Plain samples, one after another until they have at least `tokens` tokens together."""

    by_step = False

    def __init__(self, tokens: int):
        self.tokens, self.budget = tokens, Budget(tokens)
        self.samples: list[Solution] = []

    def parents(self) -> list[Solution]:
        """The start of the solution, as often as it is to be sampled in the next round."""
        if self.budget.used >= self.tokens:
            return []
        # as many as fit, but not more than have shown how long they are; one if none fits
        return [START] * max(1, self.budget.room(len(self.samples)))

    def take(self, children: Sequence[Solution]) -> None:
        """Takes the samples of a round."""
        self.samples += children

    def solutions(self) -> list[Solution]:
        """All samples."""
        return self.samples
