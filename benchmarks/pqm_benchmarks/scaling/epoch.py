"""The micro-batches of an epoch, as the trainer's own planner packs them from the made-up workload."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pqm_benchmarks.shared.workload import Questions, flat
from pqm_fast.data.batches import PackingUnits

LAYOUTS = {"plain": "plain packing", "tree": "trees", "halves": "trees of half a budget"}


@dataclass(frozen=True)
class MicroBatches:
    """Those of one epoch or of several, in the order of the plan."""

    members: list[np.ndarray]  # trajectory numbers of each
    tokens: np.ndarray  # [M] to compute, without padding
    pairs: np.ndarray  # [M] of a token and one that it attends to
    heaviest: np.ndarray  # [M] the pairs of the one unit that has most


@dataclass(frozen=True)
class Workload:
    """Trajectories, as the planner sees them."""

    tokens: Sequence[np.ndarray]
    question: np.ndarray  # [N]

    @classmethod
    def of(cls, questions: Questions) -> "Workload":
        sizes = [len(solutions) for solutions in questions]
        return cls([t.input_ids for t in flat(questions)], np.repeat(np.arange(len(sizes)), sizes))

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.array([len(tokens) for tokens in self.tokens])

    def units(self, layout: str, budget: int) -> PackingUnits:
        """For micro-batches of `budget` tokens. Trees stay whole if they fit; those of the layout `halves` are divided
        if they take more than half of it."""
        members = np.arange(len(self.tokens))
        if layout == "plain":
            return PackingUnits.single(members, self.lengths)
        limit = max(budget // 2, int(self.lengths.max())) if layout == "halves" else budget
        return PackingUnits.questions(members, self.question, self.tokens.__getitem__, limit, share=True)


def micro_batches(units: PackingUnits, budget: int, seed: int, epochs: int = 1) -> MicroBatches:
    """The plans of `epochs` passes, one after the other."""
    members = [batch for epoch in range(epochs) for batch in units.batches(budget, seed=seed, epoch=epoch)]
    starts = np.append(0, units.ends[:-1])

    def by_first(values: np.ndarray) -> np.ndarray:
        """The value of each unit at the number of its first trajectory, 0 elsewhere."""
        at_first = np.zeros(int(units.members.max()) + 1)
        at_first[units.members[starts]] = values
        return at_first

    tokens, pairs = by_first(units.sizes), by_first(np.add.reduceat(units.pairs, starts))
    return MicroBatches(
        members,
        tokens=np.array([tokens[batch].sum() for batch in members]),
        pairs=units.pairs_of(members),
        heaviest=np.array([pairs[batch].max() for batch in members]),
    )
