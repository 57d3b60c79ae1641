"""Counts the prefixes that the trajectories of one question have in common."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pqm_fast.data.trajectory import Trajectory


def count_prefixes(trajectories: Iterable["Trajectory"]) -> tuple[int, int, int]:
    """(distinct prefixes, their attention pairs, prefixes at which a step ends). A prefix sees all of its prefixes."""
    nodes: dict[tuple[int, int], int] = {}  # (node of the prefix without its last token, that token) -> node
    step_ends: set[int] = set()
    pairs = 0
    for trajectory in trajectories:
        path, node = [], -1
        for length, token in enumerate(trajectory.input_ids.tolist(), 1):
            new = len(nodes)
            node = nodes.setdefault((node, token), new)
            pairs += length if node == new else 0
            path.append(node)
        step_ends |= {path[row] for row in trajectory.step_tokens.tolist()}
    return len(nodes), pairs, len(step_ends)


def tree_ratio(questions: Sequence[Sequence["Trajectory"]]) -> float:
    """Tokens of all trajectories over the distinct prefixes of each question."""
    tokens = sum(len(trajectory.input_ids) for solutions in questions for trajectory in solutions)
    return tokens / sum(count_prefixes(solutions)[0] for solutions in questions)
