"""Stand-ins for a policy and a model, and solutions as a search sees them."""

from collections.abc import Callable, Sequence
from typing import Any

from pqm_fast.data.records import EMPTY_STEP
from pqm_fast.errors import RecordError
from pqm_fast.sample.policy import Completion, Request
from pqm_fast.sample.read_questions import Question
from pqm_fast.search.options import SearchConfig
from pqm_fast.search.rounds import Rounds
from pqm_fast.search.solution import Solution

Write = Callable[[Request, int], Completion | RecordError]


def config(**options: Any) -> SearchConfig:
    return SearchConfig(policy="stand-in", model="stand-in", data=("q",), out="o", **options)


def solution(*steps: str, scores: Sequence[float | None] = (), end: str = "", tokens: int = 0) -> Solution:
    return Solution(steps, tokens, end, tuple(scores))


class ScriptedPolicy:
    """`write(request, i)` is the outcome of a request, of which i are earlier ones for the same prefix. Hands back the
    last request first, at most `batch` at once."""

    def __init__(self, write: Write, batch: int = 5):
        self.write, self.batch = write, batch
        self.waiting: list[Request] = []
        self.seen: list[Request] = []
        self.closed = 0

    def room(self) -> int:
        return self.batch - len(self.waiting)

    def submit(self, request: Request) -> None:
        self.waiting.append(request)

    def collect(self):
        outcomes = []
        for request in reversed(self.waiting):
            before = sum(r.question == request.question and r.steps == request.steps for r in self.seen)
            self.seen.append(request)
            outcomes.append((request, self.write(request, before)))
        self.waiting = []
        return outcomes

    def close(self) -> None:
        self.closed += 1


class TableScorer:
    """Scores each step by its text; a text that is not in the table has the score 0. `bad`: a step it cannot read."""

    def __init__(self, table: dict[str, float | None], bad: str = "no such step"):
        self.table, self.bad = table, bad
        self.calls: list[list[tuple[str, tuple[str, ...]]]] = []

    def score(self, solutions, *, lenient):
        assert lenient
        self.calls.append(list(solutions))
        assert all(steps and (steps == (EMPTY_STEP,) or EMPTY_STEP not in steps) for _, steps in solutions)
        return [[None if self.bad in steps else self.table.get(step, 0.0) for step in steps] for _, steps in solutions]


class Memory:
    """A store in memory, which keeps what a Store would keep."""

    def __init__(self):
        self.completions, self.rounds = {}, {}

    def completion(self, key):
        return self.completions.get(key)

    def keep_completion(self, key, completion):
        assert key not in self.completions
        self.completions[key] = completion

    def scores(self, q, part, round):
        return self.rounds.get((q, part, round))

    def keep_scores(self, part, round, scores):
        for q, of_question in scores.items():
            self.rounds[q, part, round] = of_question


def rounds(options: SearchConfig, policy: ScriptedPolicy, scorer: Any, store: Memory | None = None) -> Rounds:
    return Rounds(options, "stand-in", lambda: policy, lambda: scorer, store or Memory())


def question(text: str = "Q") -> Question:
    return Question(f"id of {text}", text, None, {})
