"""The policies that write solutions, with different kinds of mistake and, except for `careless`, different weak spots.

A spot is a value, the operation applied to it, and the operation's letter. A stable hash determines which spots of a
policy are weak. There the policy is likely to make its mistake, so its errors correlate between samples, and a majority
vote can be wrong. `careless` slips anywhere, in a new way each time.
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
    """What a policy knows when it writes a step: the operation, the start value and every value written so far."""

    letter: str
    operation: int
    values: Sequence[int]
    is_last: bool


# Writes a step, or None to skip it, from the turn, the name of the spot and the sample's random generator.
StepWriter = Callable[[Turn, str, random.Random], Step | None]


def correct_step(turn: Turn, spot: str, rng: random.Random) -> Step:
    """Carries out the operation correctly, on a value that may already be wrong."""
    left = turn.values[-1]
    return Step(turn.letter, left, turn.operation, apply(left, turn.operation))


def wrong_fact(turn: Turn, spot: str, rng: random.Random) -> Step:
    """Writes a result that is off by one or two, and always the same for a spot."""
    return _with_value(turn, pick(_near_misses(turn), f"{spot} result"))


def opposite_sign(turn: Turn, spot: str, rng: random.Random) -> Step:
    """Adds instead of subtracting, and subtracts instead of adding."""
    left = turn.values[-1]
    return Step(turn.letter, left, -turn.operation, apply(left, -turn.operation))


def copied_value(turn: Turn, spot: str, rng: random.Random) -> Step:
    """Starts from the value before the last one. If there is only one value so far, the step is correct."""
    left = turn.values[-2] if len(turn.values) > 1 else turn.values[-1]
    return Step(turn.letter, left, turn.operation, apply(left, turn.operation))


def skipped_step(turn: Turn, spot: str, rng: random.Random) -> Step | None:
    """Writes nothing, unless the step is the last: a solution that stops early would have no wrong step to label."""
    return correct_step(turn, spot, rng) if turn.is_last else None


def random_slip(turn: Turn, spot: str, rng: random.Random) -> Step:
    """Writes a result that is off by one or two, drawn anew each time."""
    return _with_value(turn, rng.choice(_near_misses(turn)))


@dataclass(frozen=True, slots=True)
class Policy:
    """Writes solutions with one or more kinds of mistake.

    `weak_share` of all spots are weak. There, and only there, the policy makes a mistake with probability
    `mistake_chance`; if it has several kinds, the spot determines which. The world's `seed` determines the weak spots.
    """

    name: str
    mistakes: tuple[StepWriter, ...]
    weak_share: float
    mistake_chance: float
    seed: int
    by_letter: bool = True
    """Whether the same value and operation under another letter are a different spot. They are not for a false fact."""

    def solve(self, problem: Problem, rng: random.Random, steps_so_far: Sequence[Step] = ()) -> list[Step]:
        """Samples a solution and returns its steps after `steps_so_far`. Its answer is the value of the last step."""
        values = [problem.start, *(step.value for step in steps_so_far)]
        first = LETTERS.index(steps_so_far[-1].letter) + 1 if steps_so_far else 0
        steps = []
        for index, operation in enumerate(problem.operations[first:], first):
            letter = LETTERS[index]
            turn = Turn(letter, operation, values, is_last=index == len(problem.operations) - 1)
            spot = f"{self.seed} {self.name} {letter if self.by_letter else '*'} {values[-1]} {operation}"
            write: StepWriter = correct_step
            if stable_unit(spot) < self.weak_share and rng.random() < self.mistake_chance:
                write = pick(self.mistakes, f"{spot} kind")
            step = write(turn, spot, rng)
            if step is not None:
                steps.append(step)
                values.append(step.value)
        return steps


TRAINED = ("facts", "sign", "copy", "skip", "careless", "strong")


def make_policies(seed: int = 0) -> dict[str, Policy]:
    """The seven policies by name (`TRAINED` and `mixed`), with the weak spots of the world with this seed."""
    all_mistakes = (wrong_fact, opposite_sign, copied_value, skipped_step, random_slip)
    # The chance is just above half: a mistake wins the vote at a weak spot, but 16 samples still have the right step.
    weak_share, mistake_chance = 0.3, 0.55
    policies = [
        Policy("facts", (wrong_fact,), weak_share, mistake_chance, seed, by_letter=False),
        Policy("sign", (opposite_sign,), weak_share, mistake_chance, seed),
        Policy("copy", (copied_value,), weak_share, mistake_chance, seed),
        Policy("skip", (skipped_step,), weak_share, mistake_chance, seed),
        Policy("careless", (random_slip,), 1.0, 0.3, seed),
        Policy("strong", (wrong_fact,), 0.06, mistake_chance, seed),
        Policy("mixed", all_mistakes, weak_share, mistake_chance, seed),
    ]
    return {policy.name: policy for policy in policies}


def stable_unit(key: str) -> float:
    """A number in [0, 1) that depends only on the key (Python's `hash` differs between processes)."""
    digest = hashlib.blake2b(key.encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def pick(items: Sequence[Item], key: str) -> Item:
    """The item that the hash of the key selects."""
    return items[int(stable_unit(key) * len(items))]


def _near_misses(turn: Turn) -> list[int]:
    truth = apply(turn.values[-1], turn.operation)
    return [truth + error for error in (-2, -1, 1, 2) if truth + error in WRITTEN_VALUES]


def _with_value(turn: Turn, value: int) -> Step:
    return Step(turn.letter, turn.values[-1], turn.operation, value)
