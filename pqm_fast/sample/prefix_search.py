"""Chooses which prefixes of a solution to measure, and derives step labels from the measurements.

Prefix t is the question and steps 1..t. It is measured by rollouts: solutions that continue from it. What counts is how
many of them end right.
"""

from collections.abc import Mapping
from typing import Literal

Search = Literal["full", "binary"]
Label = Literal["hard", "soft"]


def next_prefixes(steps: int, right_counts: Mapping[int, int], search: Search) -> list[int]:
    """The prefixes among 1..steps to measure next; an empty list once nothing is left to measure.

    `right_counts` maps each prefix that has been measured to its number of right rollouts. Binary search assumes that
    once no rollout of a prefix is right, none of a later prefix is, and that the question alone can be solved. By its
    end, it has measured the first hopeless prefix (no rollout right) and the prefix before it.
    """
    if search == "full":
        return [t for t in range(1, steps + 1) if t not in right_counts]
    solvable, hopeless = 0, steps
    if hopeless not in right_counts:
        return [hopeless]
    if right_counts[hopeless]:
        return []
    while hopeless - solvable > 1:
        middle = (solvable + hopeless) // 2
        if middle not in right_counts:
            return [middle]
        solvable, hopeless = (middle, hopeless) if right_counts[middle] else (solvable, middle)
    return []


def labels_from_rollouts(
    steps: int, right_counts: Mapping[int, int], rollout_counts: Mapping[int, int], search: Search, label: Label
) -> list[float | None]:
    """One label per step, once nothing is left to measure.

    `hard`: 1 if any rollout is right, otherwise 0. `soft`: the share that is right. Binary search yields hard labels:
    1 up to the first hopeless prefix, whose last step is the first error and gets 0. Later steps have not been measured
    and get None.
    """
    if search == "full":
        shares = [right_counts[t] / rollout_counts[t] for t in range(1, steps + 1)]
        return [share if label == "soft" else float(share > 0) for share in shares]
    first_error = min((t for t, count in right_counts.items() if not count), default=steps + 1)
    return [1.0 if t < first_error else 0.0 if t == first_error else None for t in range(1, steps + 1)]
