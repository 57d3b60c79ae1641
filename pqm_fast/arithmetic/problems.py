"""Problems of the embedded arithmetic world, the steps of a solution, and their exact labels.

A problem is a chain of additions and subtractions, such as `7 a -2 b +1 c +5`: start from 7, operation `a` subtracts 2,
and so on. A solution names each operation that it carries out: `a: 7 -2 =5`.
"""

import random
from collections.abc import Set
from dataclasses import dataclass
from itertools import accumulate

from pqm_fast.errors import PQMError

LETTERS = "abcde"
MAX_OPERATIONS = len(LETTERS)
OPERATIONS = (-5, -4, -3, -2, -1, 1, 2, 3, 4, 5)
TRUE_VALUES = range(1, 10)
# One operation from any true value stays within this range. Longer wrong chains are clamped to it, so that the
# vocabulary is finite.
WRITTEN_VALUES = range(TRUE_VALUES[0] + min(OPERATIONS), TRUE_VALUES[-1] + max(OPERATIONS) + 1)
# A third of the 153,118 problems (130,684 of them have five operations), so drawing distinct ones stays fast.
MAX_PROBLEMS = 50_000


@dataclass(frozen=True, slots=True)
class Problem:
    """A start value and up to five operations, each a signed operand, named by the letters in order."""

    start: int
    operations: tuple[int, ...]

    @property
    def text(self) -> str:
        lettered = zip(LETTERS, self.operations, strict=False)
        return " ".join([str(self.start), *(f"{letter} {operation:+d}" for letter, operation in lettered)])

    @property
    def true_values(self) -> tuple[int, ...]:
        """The value after each operation."""
        return tuple(accumulate(self.operations, initial=self.start))[1:]

    @property
    def answer(self) -> int:
        return self.true_values[-1]


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a solution: an operation with its letter, the value it starts from and the value it arrives at."""

    letter: str
    left: int
    operation: int
    value: int

    @property
    def text(self) -> str:
        return f"{self.letter}: {self.left} {self.operation:+d} ={self.value}"


def step_labels(problem: Problem, steps: list[Step]) -> list[bool]:
    """For each step, whether it arrives at the true value after its operation, no matter how."""
    truth = problem.true_values
    return [step.value == truth[LETTERS.index(step.letter)] for step in steps]


def apply(value: int, operation: int) -> int:
    """`value + operation`, clamped to WRITTEN_VALUES."""
    return min(max(value + operation, WRITTEN_VALUES[0]), WRITTEN_VALUES[-1])


def draw_problem(rng: random.Random, length: int) -> Problem:
    """A random problem of `length` operations whose true values all lie in 1..9."""
    start = value = rng.choice(TRUE_VALUES)
    operations = []
    for _ in range(length):
        operation = rng.choice([o for o in OPERATIONS if value + o in TRUE_VALUES])
        operations.append(operation)
        value += operation
    return Problem(start, tuple(operations))


def draw_problems(
    count: int, rng: random.Random, *, shortest: int = 1, exclude: Set[Problem] = frozenset()
) -> list[Problem]:
    """`count` distinct problems of `shortest` to five operations, none of them in `exclude`.

    The length is drawn uniformly. Only 60 problems of one operation and 412 of two exist, so large draws contain more
    of the longer ones. Raises PQMError if `count` is not in 1..MAX_PROBLEMS.
    """
    if not 1 <= count <= MAX_PROBLEMS:
        raise PQMError(f"arithmetic world: {count} problems asked for; choose 1 to {MAX_PROBLEMS}")
    problems: dict[Problem, None] = {}  # used as a set that keeps its order
    while len(problems) < count:
        problem = draw_problem(rng, rng.randint(shortest, MAX_OPERATIONS))
        if problem not in exclude:
            problems[problem] = None
    return list(problems)
