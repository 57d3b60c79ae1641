"""Rounds of many questions: the policy writes a continuation of each parent, and the model scores the results.

All continuations of a round are requested together, and scored together once the last one has arrived. So the batches
of the model, and the rounding of its scores, do not depend on the order in which a policy answers.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from pqm_fast.data.records import EMPTY_STEP
from pqm_fast.errors import PQMError
from pqm_fast.sample.policy import Completion, Policy, Request, complete, request_seed
from pqm_fast.sample.read_questions import Question
from pqm_fast.sample.refused import leave_out
from pqm_fast.search.methods import Samples, Search
from pqm_fast.search.options import SearchConfig
from pqm_fast.search.solution import Scores, Solution
from pqm_fast.search.store import Key, Part, Store

MOST_BLANKS = 8  # blank pieces in a row; a policy that writes more of them is cut off


class Scoring(Protocol):
    """A Scorer or a RemoteScorer."""

    def score(self, solutions: Sequence[tuple[str, Sequence[str]]], *, lenient: bool) -> list[Any]:
        """Q-values of the steps of (question, steps) pairs, in the order of the pairs; see `Scorer.score`."""


class _Slot(NamedTuple):
    """A continuation to write: of `parent`, the one with this number in the round of its question."""

    q: int
    question: Question
    search: Search | Samples
    number: int
    parent: Solution


class Rounds:
    """Runs the rounds of questions. `policy` and `scorer` open them when they are first needed; `show_progress` gets a
    line on each round."""

    def __init__(
        self,
        config: SearchConfig,
        policy_name: str,
        policy: Callable[[], Policy],
        scorer: Callable[[], Scoring],
        store: Store,
        show_progress: Callable[[str], Any] = lambda message: None,
    ):
        self.config, self.policy_name, self.store = config, policy_name, store
        self.policy, self.scorer, self.show_progress = policy, scorer, show_progress

    def run(self, part: Part, searches: Sequence[tuple[int, Question, Search | Samples]]) -> dict[int, str]:
        """Runs the searches of numbered questions to their end. Returns the numbers of those that the policy refused,
        with the reason; raises PQMError at the first unless they may be left out."""
        refused: dict[int, str] = {}
        round = 0
        while slots := [
            _Slot(q, question, search, number, parent)
            for q, question, search in searches
            if q not in refused
            for number, parent in enumerate(search.parents())
        ]:
            self.show_progress(f"{part}, round {round + 1}: {len(slots):,} to write")
            written = self._written(part, round, slots, refused)
            children: dict[int, list[Solution]] = {}
            for slot, child in zip(slots, written, strict=True):
                if slot.q not in refused:
                    slot.search.written += child.tokens - slot.parent.tokens
                    children.setdefault(slot.q, []).append(child)
            scores = self._scores(part, round, children, {slot.q: slot.question.text for slot in slots})
            for q, question, search in searches:
                if q in children and round == 0 and not self._is_readable(question, scores[q]):
                    why = "the model cannot read it: it is beyond its context, or holds its step token"
                    leave_out(refused, q, question, why, self.config.skip_refused)
                elif q in children:
                    search.take([replace(c, scores=s) for c, s in zip(children[q], scores[q], strict=True)])
            round += 1
        return refused

    def _written(self, part: Part, round: int, slots: Sequence[_Slot], refused: dict[int, str]) -> list[Solution]:
        """The continuation of each slot, from the store or from the policy. Adds the questions to `refused` that the
        policy does not take."""
        children = [slot.parent for slot in slots]
        todo = deque((i, slot.parent, 0) for i, slot in enumerate(slots))  # with the blank pieces so far

        def next_request() -> Request | None:
            while todo:
                i, parent, blanks = todo.popleft()
                if slots[i].q in refused:
                    continue
                key = Key(slots[i].q, part, round, slots[i].number, blanks)
                if (stored := self.store.completion(key)) is None:
                    return self._request(slots[i], key, parent, i)
                take(i, parent, blanks, stored)
            return None

        def take(i: int, parent: Solution, blanks: int, completion: Completion) -> None:
            children[i] = child = self._child(parent, completion, slots[i].search.by_step)
            if not child.end and not child.pieces[-1].strip():  # a blank piece is no step: go on to the next one
                if blanks < MOST_BLANKS:
                    todo.append((i, child, blanks + 1))
                else:
                    children[i] = replace(child, end="length")

        if (first := next_request()) is None:
            return children  # the store has everything: the policy is not needed
        pending = [first]
        for request, outcome in complete(self.policy(), lambda: pending.pop() if pending else next_request()):
            i, key, parent = request.key
            if isinstance(outcome, Completion):
                self.store.keep_completion(key, outcome)
                take(i, parent, key.blanks, outcome)
            elif request.steps:  # a solution that fills the context
                children[i] = replace(parent, end="length")
            else:
                leave_out(refused, key.q, slots[i].question, outcome, self.config.skip_refused)
        return children

    def _request(self, slot: _Slot, key: Key, parent: Solution, i: int) -> Request:
        text, search = slot.question.text, slot.search
        if isinstance(search, Samples):  # the seeds of `pqm-fast sample`
            seed = request_seed(self.config.seed, self.policy_name, text, len(search.samples) + slot.number)
        else:
            seed = request_seed(self.config.seed, self.policy_name, text, *key[1:])
        limit = self.config.writing.max_new_tokens - parent.tokens
        return Request(text, parent.pieces, seed, (i, key, parent), one_step=search.by_step, limit=limit)

    def _child(self, parent: Solution, completion: Completion, by_step: bool) -> Solution:
        if completion.tokens is None:
            raise PQMError(
                f"{self.policy_name}: its server does not say how many tokens it wrote (usage.completion_tokens), and "
                "a search counts them; use another server"
            )
        texts = [completion.text] if by_step else completion.text.split(self.config.writing.step_separator)
        tokens = parent.tokens + max(1, completion.tokens)
        full = completion.goes_on and tokens >= self.config.writing.max_new_tokens
        return Solution(
            pieces=(*parent.pieces, *texts),
            tokens=tokens,
            end="length" if full or not completion.finished else "" if completion.goes_on else "stop",
        )

    def _is_readable(self, question: Question, scores: Sequence[Scores]) -> bool:
        """Whether the model can read the question. It is asked where none of the first steps has a score."""
        if any(score is not None for of_solution in scores for score in of_solution):
            return True
        return self.scorer().score([(question.text, ("1",))], lenient=True) != [[None]]

    def _scores(
        self, part: Part, round: int, children: dict[int, list[Solution]], texts: dict[int, str]
    ) -> dict[int, list[Scores]]:
        """The scores of the steps of each question's children, from the store or from the model."""
        scores = {q: stored for q in children if (stored := self.store.scores(q, part, round)) is not None}
        missing = [q for q in children if q not in scores]
        # equal solutions are scored once, and empty ones, which are never preferred, not at all
        pairs = dict.fromkeys((texts[q], child.steps) for q in missing for child in children[q])
        if missing:
            scored = [pair for pair in pairs if pair[1] != (EMPTY_STEP,)]
            by_pair: dict[tuple[str, tuple[str, ...]], Scores] = dict.fromkeys(pairs, (None,))
            if scored:
                by_pair |= zip(scored, map(tuple, self.scorer().score(scored, lenient=True)), strict=True)
            new = {q: [by_pair[texts[q], child.steps] for child in children[q]] for q in missing}
            self.store.keep_scores(part, round, new)
            scores |= new
        return scores
