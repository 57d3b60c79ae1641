"""Plans batches: which trajectories share a micro-batch, within its budget of tokens."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pqm_fast.data.questions import group_by_question
from pqm_fast.data.tree import prefix_order, split_tree

WINDOW = 8192  # units that are packed together


@dataclass(frozen=True)
class PackingUnits:
    """Trajectories in units that are packed into one batch as a whole: single trajectories, or the solutions of one
    question."""

    members: np.ndarray  # [N] numbers of trajectories, unit after unit
    ends: np.ndarray  # [U] the end of each unit in `members`
    sizes: np.ndarray  # [U] tokens to compute
    tokens: np.ndarray  # [N] tokens to compute for each of `members`, without those shared with the one before it
    pairs: np.ndarray  # [N] pairs of such a token and one that it attends to
    divided: int = 0
    """Questions that do not fit a batch, so that their solutions are in more than one unit."""

    @classmethod
    def single(cls, members: np.ndarray, lengths: np.ndarray) -> "PackingUnits":
        """Each trajectory is a unit; `lengths` [N] in tokens."""
        return cls(members, np.arange(1, len(members) + 1), lengths, lengths, _pairs(lengths))

    @classmethod
    def questions(
        cls,
        members: np.ndarray,
        question: np.ndarray,
        tokens: Callable[[int], np.ndarray],
        budget: int,
        *,
        share: bool,
    ) -> "PackingUnits":
        """The trajectories of one question are a unit, or as few units as keep each within the budget.

        `question` [N] has equal numbers for trajectories of one question; `tokens` returns the tokens [L] of a
        trajectory from its number. `share`: a unit is a prefix tree, whose shared tokens count once. The units of a
        question that is divided hold neighbours in the order of their tokens, which share the most. Raises ValueError
        if a single trajectory exceeds the budget.
        """
        ordered, starts, sizes, offset, divided = [members[:0]], [], [], 0, 0
        new_tokens, pairs = [np.zeros(0, np.int64)], [np.zeros(0)]
        for positions in group_by_question(question):
            group = members[positions]
            sequences = [tokens(i) for i in group.tolist()]
            order, shared = prefix_order(sequences)
            lengths = np.array([len(s) for s in sequences], dtype=np.int64)[order]
            shared = shared if share else np.zeros_like(shared)
            unit_starts, unit_sizes = split_tree(lengths, shared, budget)
            shared[unit_starts] = 0  # the first of a unit shares nothing with the one before it
            ordered.append(group[order])
            new_tokens.append(lengths - shared)
            pairs.append(_pairs(lengths, shared))
            starts += [offset + start for start in unit_starts]
            sizes += unit_sizes
            offset += len(group)
            divided += len(unit_sizes) > 1
        ends = np.array([*starts[1:], offset][: len(starts)], dtype=np.int64)
        by_member = np.concatenate(new_tokens), np.concatenate(pairs)
        return cls(np.concatenate(ordered), ends, np.array(sizes, dtype=np.int64), *by_member, divided)

    def batches(self, budget: int, *, seed: int = 0, epoch: int = 0, shuffle: bool = True) -> list[np.ndarray]:
        """The trajectory numbers of each batch, planned by `plan_batches`."""
        counts = np.diff(self.ends, prepend=0)

        def members_of(units: np.ndarray) -> np.ndarray:
            sizes = counts[units]
            first_of_unit = self.ends[units] - np.cumsum(sizes)
            return self.members[np.repeat(first_of_unit, sizes) + np.arange(sizes.sum())]

        return [members_of(u) for u in plan_batches(self.sizes, budget, seed=seed, epoch=epoch, shuffle=shuffle)]

    def tokens_of(self, batches: Sequence[np.ndarray]) -> np.ndarray:
        """The tokens to compute in each of `batches` (trajectory numbers): [len(batches)]."""
        return _sums(self._by_number[0], batches)

    def pairs_of(self, batches: Sequence[np.ndarray]) -> np.ndarray:
        """The pairs of a token and one that it attends to in each of `batches` (trajectory numbers): [len(batches)]."""
        return _sums(self._by_number[1], batches)

    @cached_property
    def _by_number(self) -> np.ndarray:
        """`tokens` and `pairs` by the number of the trajectory."""
        columns = np.zeros((2, int(self.members.max(initial=-1)) + 1))
        columns[:, self.members] = self.tokens, self.pairs
        return columns

    def batches_in_order(self, budget: int) -> Iterator[np.ndarray]:
        """The trajectory numbers of batches that keep the order of the units. Every unit must fit the budget."""
        starts = np.concatenate([[0], self.ends])[:-1]
        cuts, batch_tokens = [], 0
        for start, size in zip(starts.tolist(), self.sizes.tolist(), strict=True):
            if batch_tokens and batch_tokens + size > budget:
                cuts.append(start)
                batch_tokens = 0
            batch_tokens += size
        if len(self.members):
            yield from np.split(self.members, cuts)


def _sums(column: np.ndarray, batches: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([column[batch].sum() for batch in batches])


def _pairs(lengths: np.ndarray, shared: np.ndarray | int = 0) -> np.ndarray:
    """Pairs of a token of a trajectory that is not shared and a token that it attends to: itself and those before."""
    return (lengths * (lengths + 1.0) - shared * (shared + 1.0)) / 2


def plan_batches(
    sizes: np.ndarray, budget: int, *, seed: int = 0, epoch: int = 0, window: int = WINDOW, shuffle: bool = True
) -> list[np.ndarray]:
    """Groups items (units or trajectories) into batches of at most `budget` tokens, window by window of a shuffled
    epoch. Returns the indices of the items of each batch.

    `sizes` [U] are in tokens. Within a window the longest item goes first, into the emptiest batch. First-fit
    decreasing fills batches as well, but puts trajectories of similar length together; a mean over the trajectories of
    a batch would then weight those in the batches of long ones several times more. (seed, epoch) determines the
    batches; each item is in exactly one. `shuffle=False` keeps the order of the data between windows (evaluation during
    training). Raises ValueError if an item does not fit.
    """
    sizes = np.asarray(sizes)
    if len(sizes) and sizes.max() > budget:
        raise ValueError(f"a trajectory of {sizes.max()} tokens does not fit a budget of {budget}")
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(sizes)) if shuffle else np.arange(len(sizes))
    batches: list[np.ndarray] = []
    carried_over = order[:0]  # items that do not fill a whole batch go into the next window
    for start in range(0, len(order), window):
        pool = np.concatenate([carried_over, order[start : start + window]])
        total = np.cumsum(sizes[pool])
        if start + window < len(order):
            num_bins = int(total[-1]) // budget
            num_items = int(np.searchsorted(total, num_bins * budget, side="right"))
        else:
            num_bins, num_items = -(-int(total[-1]) // budget), len(pool)
        bins, unplaced = _longest_into_emptiest(pool[:num_items], sizes, budget, num_bins)
        carried_over = np.concatenate([unplaced, pool[num_items:]])
        while len(carried_over) and start + window >= len(order):  # rounding can leave a few items at the very end
            more_bins, carried_over = _longest_into_emptiest(
                carried_over, sizes, budget, -(-int(sizes[carried_over].sum()) // budget)
            )
            bins += more_bins
        batches += [bins[i] for i in rng.permutation(len(bins))] if shuffle else bins
    return batches


def _longest_into_emptiest(
    items: np.ndarray, sizes: np.ndarray, budget: int, count: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Spreads items over `count` bins. Returns the bins, and the items for which there was no room."""
    emptiest = [(0, b) for b in range(count)]
    members: list[list[int]] = [[] for _ in range(count)]
    unplaced = []
    for item in items[np.argsort(-sizes[items], kind="stable")]:
        bin_tokens, b = emptiest[0] if emptiest else (budget, -1)
        if bin_tokens + sizes[item] > budget:
            unplaced.append(item)
            continue
        members[b].append(item)
        heapq.heapreplace(emptiest, (bin_tokens + int(sizes[item]), b))
    return [np.array(m) for m in members if m], np.array(unplaced, dtype=items.dtype)
