"""Who writes the solutions: policies with different kinds of error, each but `careless` with weak spots of its own.

A spot is a value and the operation it meets, under a letter. A stable hash fixes which spots of a policy are
weak: there it is likely to make its mistake, so its errors correlate between samples and a majority vote can
be wrong. `careless` slips anywhere, a new way each time.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pqm_fast.arithmetic.problems import LETTERS, WRITTEN_VALUES, Problem, Step, apply

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Turn:
    """What a policy knows when a step is due: the operation, the start and every value written so far."""

    letter: str
    operation: int
    values: Sequence[int]
    is_last: bool


# A way to write a step (None writes nothing), given the turn, the spot's name and the sample's random source.
Writer = Callable[[Turn, str, random.Random], Step | None]


def right(turn: Turn, spot: str, rng: random.Random) -> Step:
    """The operation carried out as it should be (on a value that may be wrong already)."""
    left = turn.values[-1]
    return Step(turn.letter, left, turn.operation, apply(left, turn.operation))


def wrong_fact(turn: Turn, spot: str, rng: random.Random) -> Step:
    """A result that is off by one or two, always the same one for the same spot."""
    return _with_value(turn, pick(_near_misses(turn), f"{spot} result"))


def opposite_sign(turn: Turn, spot: str, rng: random.Random) -> Step:
    """Adds for a subtraction, subtracts for an addition."""
    left = turn.values[-1]
    return Step(turn.letter, left, -turn.operation, apply(left, -turn.operation))


def copied_value(turn: Turn, spot: str, rng: random.Random) -> Step:
    """Starts from the value before last; right if there is only one value yet."""
    left = turn.values[-2] if len(turn.values) > 1 else turn.values[-1]
    return Step(turn.letter, left, turn.operation, apply(left, turn.operation))


def skipped_step(turn: Turn, spot: str, rng: random.Random) -> Step | None:
    """Writes nothing, except for the last step: a solution that just stops has no wrong step to label."""
    return right(turn, spot, rng) if turn.is_last else None


def random_slip(turn: Turn, spot: str, rng: random.Random) -> Step:
    """A result that is off by one or two, a new one each time."""
    return _with_value(turn, rng.choice(_near_misses(turn)))


@dataclass(frozen=True, slots=True)
class Policy:
    """Writes solutions with one kind of mistake or several.

    A share `weak` of all spots is weak; there, and only there, the policy makes a mistake with probability
    `chance`. With several kinds of mistake, the spot fixes which. The world's `seed` moves the spots.
    """

    name: str
    mistakes: tuple[Writer, ...]
    weak: float
    chance: float
    seed: int
    by_letter: bool = True
    """Whether the same value and operation are another spot under another letter. Not so for a false fact."""

    def solve(self, problem: Problem, rng: random.Random, begun: Sequence[Step] = ()) -> list[Step]:
        """The steps after `begun` of one sampled solution; its answer is the value of the last step."""
        values = [problem.start, *(step.value for step in begun)]
        first = LETTERS.index(begun[-1].letter) + 1 if begun else 0
        steps = []
        for index, operation in enumerate(problem.operations[first:], first):
            letter = LETTERS[index]
            turn = Turn(letter, operation, values, is_last=index == len(problem.operations) - 1)
            spot = f"{self.seed} {self.name} {letter if self.by_letter else '*'} {values[-1]} {operation}"
            write: Writer = right
            if stable_unit(spot) < self.weak and rng.random() < self.chance:
                write = pick(self.mistakes, f"{spot} kind")
            step = write(turn, spot, rng)
            if step is not None:
                steps.append(step)
                values.append(step.value)
        return steps


TRAINED = ("facts", "sign", "copy", "skip", "careless", "strong")


def make_policies(seed: int = 0) -> dict[str, Policy]:
    """The seven policies by name, `TRAINED` and `mixed`, with the weak spots of the world's seed."""
    every = (wrong_fact, opposite_sign, copied_value, skipped_step, random_slip)
    # Over half: at a weak spot the wrong way wins the vote, the right one still turns up among 16 samples.
    weak, chance = 0.3, 0.55
    policies = [
        Policy("facts", (wrong_fact,), weak, chance, seed, by_letter=False),
        Policy("sign", (opposite_sign,), weak, chance, seed),
        Policy("copy", (copied_value,), weak, chance, seed),
        Policy("skip", (skipped_step,), weak, chance, seed),
        Policy("careless", (random_slip,), 1.0, 0.3, seed),
        Policy("strong", (wrong_fact,), 0.06, chance, seed),
        Policy("mixed", every, weak, chance, seed),
    ]
    return {policy.name: policy for policy in policies}


def stable_unit(key: str) -> float:
    """A number in [0, 1) that depends on the key alone (Python's own hash differs between processes)."""
    digest = hashlib.blake2b(key.encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def pick(items: Sequence[Item], key: str) -> Item:
    """The item that the key stands for."""
    return items[int(stable_unit(key) * len(items))]


def _near_misses(turn: Turn) -> list[int]:
    truth = apply(turn.values[-1], turn.operation)
    return [truth + off for off in (-2, -1, 1, 2) if truth + off in WRITTEN_VALUES]


def _with_value(turn: Turn, value: int) -> Step:
    return Step(turn.letter, turn.values[-1], turn.operation, value)
