"""The policies of the embedded arithmetic world: they write a solution from its start or from any of its steps."""

import random
import re

from pqm_fast.arithmetic.policies import make_policies
from pqm_fast.arithmetic.problems import LETTERS, OPERATIONS, TRUE_VALUES, WRITTEN_VALUES, Problem, Step
from pqm_fast.errors import PQMError, RecordError
from pqm_fast.sample.policy import Completion, Outcome, Request

_PROBLEM = re.compile(r"(\d)((?: [a-e] [+-]\d)+)")
_STEP = re.compile(r"([a-e]): (-?\d+) ([+-]\d) =(-?\d+)")


class ArithmeticPolicy:
    """Named `NAME` or `NAME:SEED`, where SEED is the seed of the world whose weak spots it has (default 0)."""

    def __init__(self, text: str):
        name, _, world_seed = text.partition(":")
        policies = make_policies(int(world_seed) if world_seed.isdecimal() else 0)
        if name not in policies or (":" in text and not world_seed.isdecimal()):
            raise PQMError(f"policy arithmetic:{text}: choose one of {', '.join(policies)}, or NAME:WORLD-SEED")
        self.policy = policies[name]
        self.requests: list[Request] = []

    def room(self) -> int:
        return 1 - len(self.requests)

    def submit(self, request: Request) -> None:
        self.requests.append(request)

    def collect(self) -> list[Outcome]:
        outcomes: list[Outcome] = [(request, self._complete(request)) for request in self.requests]
        self.requests.clear()
        return outcomes

    def close(self) -> None:
        pass

    def _complete(self, request: Request) -> Completion | RecordError:
        problem = parse_problem(request.question)
        if problem is None:
            return _refused(request.question)
        steps_so_far = []
        for text in request.steps:
            if (step := parse_step(text)) is None:
                return _refused(text)
            steps_so_far.append(step)
        steps = self.policy.solve(problem, random.Random(request.seed), steps_so_far)
        written = steps[:1] if request.one_step else steps
        words = sum(len(step.text.split()) for step in written)
        # a line break or the end after each step is a token, as are the words
        tokens = words + max(1, len(written))
        return Completion("\n".join(step.text for step in written), True, tokens, goes_on=len(written) < len(steps))


def _refused(text: str) -> RecordError:
    return RecordError(f"{text[:60]!r} is not from the arithmetic world, the only one its policies know", "refused")


def parse_problem(text: str) -> Problem | None:
    """The problem that `text` states, or None if it is not a problem of the arithmetic world."""
    match = _PROBLEM.fullmatch(text)
    if match is None:
        return None
    words = match[2].split()
    problem = Problem(int(match[1]), tuple(map(int, words[1::2])))
    letters = "".join(words[::2])
    in_range = problem.start in TRUE_VALUES and set(problem.operations) <= set(OPERATIONS)
    return problem if in_range and LETTERS.startswith(letters) else None


def parse_step(text: str) -> Step | None:
    """The step that `text` writes, or None if it is not a step of the arithmetic world."""
    match = _STEP.fullmatch(text)
    if match is None or int(match[4]) not in WRITTEN_VALUES:
        return None
    return Step(match[1], int(match[2]), int(match[3]), int(match[4]))
