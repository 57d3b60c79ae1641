"""Which prefixes of a solution to measure, and the labels that follow.

Prefix t is the question and steps 1..t. It is measured by how many of its rollouts, solutions that go on from there,
end right.
"""

from collections.abc import Mapping
from typing import Literal

Search = Literal["full", "binary"]
Label = Literal["hard", "soft"]


def next_prefixes(steps: int, right: Mapping[int, int], search: Search) -> list[int]:
    """The prefixes among 1..steps to measure next, from the right rollouts of those that are; none at the end.

    Binary search takes it that no prefix behind a hopeless one (no rollout right) is better, and that the question
    alone is not hopeless. It ends with the first hopeless prefix measured and the one before it too.
    """
    if search == "full":
        return [t for t in range(1, steps + 1) if t not in right]
    low, high = 0, steps  # low is good, high hopeless
    if high not in right:
        return [high]
    if right[high]:
        return []
    while high - low > 1:
        middle = (low + high) // 2
        if middle not in right:
            return [middle]
        low, high = (middle, high) if right[middle] else (low, middle)
    return []


def step_labels(
    steps: int, right: Mapping[int, int], rollouts: Mapping[int, int], search: Search, label: Label
) -> list[float | None]:
    """One label per step, once nothing is left to measure.

    `hard`: 1 if any rollout is right; `soft`: the share that is. Binary search gives hard labels: 1 up to the first
    hopeless prefix, which is the first error and gets 0; what comes after it has not been looked at, and gets None.
    """
    if search == "full":
        shares = [right[t] / rollouts[t] for t in range(1, steps + 1)]
        return [share if label == "soft" else float(share > 0) for share in shares]
    first_error = min((t for t, count in right.items() if not count), default=steps + 1)
    return [1.0 if t < first_error else 0.0 if t == first_error else None for t in range(1, steps + 1)]
