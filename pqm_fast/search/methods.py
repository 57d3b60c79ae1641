"""What is written for one question, round by round: beam search, DVTS, and plain samples for comparison."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from pqm_fast.search.options import SearchConfig
from pqm_fast.search.solution import START, Solution
from pqm_fast.search.tree import Tree


class Search:
    """Beam search (one tree), or DVTS: trees that do not compete, of which each continues its best solution alone.

    DVTS is that of Beeching et al. ("Scaling test-time compute with open models", 2024), with N / M trees.

    The last of `max_steps` rounds writes the solutions to their end, as search-and-learn does. Under a limit of tokens,
    one plain solution is written first, which shows how long they are. A round then has no more continuations than can
    be written to their end: what is missing of one is taken to be as much as the longest whole solution so far has
    more, and at least the longest step so far. If that is too much for a single one, the best is written to its end,
    and the search is over. So the limit is exceeded by what the end of one solution takes, unless solutions or steps
    turn out to be longer than all before them.
    """

    def __init__(self, config: SearchConfig):
        best = config.n // config.beam_width
        if config.method == "beam":
            self.trees = [Tree(config.n, best, config.aggregate, config.distinct)]
        else:
            self.trees = [Tree(config.beam_width, 1, config.aggregate) for _ in range(best)]
        self.limit, self.written = config.budget_tokens, 0
        """Tokens that the policy may write, None for any number; and those that it has written."""
        self.max_steps, self.rounds, self.over = config.max_steps, 0, False
        self.by_step = self.limit is None
        """Whether the present round writes a step of each solution; otherwise all that is missing."""
        self.first: list[Solution] = []
        """Under a limit of tokens, the plain solution that was written first."""
        self.continued: list[Solution] = []
        self.shares: list[int] = []
        self.longest_step = 1

    def parents(self) -> list[Solution]:
        """The solutions to continue in the next round, each as often as it has continuations. Empty at the end."""
        if self.limit is not None and not self.first:
            return [START]
        wanted = [len(tree.parents(tree.width)) for tree in self.trees]
        if self.over or not any(wanted):
            return []
        self.rounds += 1
        room = self._room(sum(wanted))
        self.by_step = self.rounds < self.max_steps and room > 0
        self.over = not self.by_step
        self.shares = self._shares(wanted, max(1, room))
        self.continued = [s for tree, share in zip(self.trees, self.shares, strict=True) for s in tree.parents(share)]
        return self.continued

    def take(self, children: Sequence[Solution]) -> None:
        """Takes the continuations of `parents`, in that order, with their scores."""
        if not self.shares:
            self.first = list(children)
            return
        if self.by_step:
            pairs = zip(children, self.continued, strict=True)
            self.longest_step = max(self.longest_step, *(child.tokens - parent.tokens for child, parent in pairs))
        rest = iter(children)
        for tree, share in zip(self.trees, self.shares, strict=True):
            tree.take(list(islice(rest, share)))

    def solutions(self) -> list[Solution]:
        """The solutions of the search: those that have ended, and the kept ones that were not continued to their end,
        as cut off."""
        cut_off = [replace(s, end="length") for tree in self.trees for s in tree.unfinished if s != START]
        return [*self.first, *(s for tree in self.trees for s in tree.ended), *cut_off]

    def _room(self, wanted: int) -> int:
        """How many of `wanted` continuations can be written to their end."""
        if self.limit is None:
            return wanted
        whole = max(s.tokens for s in [*self.first, *(s for tree in self.trees for s in tree.ended)])
        begun = min(s.tokens for tree in self.trees for s in tree.unfinished)
        return max(0, min(wanted, (self.limit - self.written) // max(whole - begun, self.longest_step)))

    def _shares(self, wanted: Sequence[int], room: int) -> list[int]:
        """`room` continuations dealt to the trees in turn, the one with the best solution first, up to what each of
        them wants."""
        shares = [0] * len(wanted)
        order = sorted(range(len(wanted)), key=lambda i: -self.trees[i].best)
        while sum(shares) < min(room, sum(wanted)):
            for i in order:
                shares[i] += sum(shares) < room and shares[i] < wanted[i]
        return shares


class Samples:
    """Plain samples, one after another until they have at least `tokens` tokens together."""

    by_step = False

    def __init__(self, tokens: int):
        self.tokens, self.written = tokens, 0
        self.samples: list[Solution] = []

    def parents(self) -> list[Solution]:
        """The start of the solution, as often as it is to be sampled in the next round."""
        left = self.tokens - self.written
        if left <= 0:
            return []
        # as many as fit if none is longer than the longest, but not more than have shown how long they are
        fit = min((left // sample.tokens for sample in self.samples), default=1)
        return [START] * max(1, min(fit, len(self.samples)))

    def take(self, children: Sequence[Solution]) -> None:
        """Takes the samples of a round."""
        self.samples += children

    def solutions(self) -> list[Solution]:
        """All samples."""
        return self.samples
