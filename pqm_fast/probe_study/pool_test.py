"""The test on pools of candidate solutions: the candidate with the best score, beside the vote and the oracle."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pqm_fast.data.candidate import Candidate
from pqm_fast.data.questions import question_number, split_by_question
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.aggregate import AGGREGATORS, aggregate_all
from pqm_fast.evaluate.answers import answer_of, group_answers
from pqm_fast.evaluate.best_of_n import expected_best
from pqm_fast.evaluate.outcomes import judged
from pqm_fast.evaluate.vote import majority_vote
from pqm_fast.scoring.stored import Scores

TUNING_FRACTION = 0.2  # of the questions, which choose the aggregator


@dataclass(frozen=True)
class PoolTest:
    """Candidates of questions, judged; each question counts once, whatever policies wrote its candidates."""

    tuning: list[np.ndarray]
    """For each tuning question, the indices of its candidates in the records."""
    test: list[np.ndarray]
    """The same for each test question."""
    correct: np.ndarray
    """[records] in [0, 1]."""
    answers: list[list[int]]
    """For each test question, the number of each candidate's answer; -1 for none."""

    @classmethod
    def of(cls, records: Sequence[Record], source: str, seed: int) -> "PoolTest":
        """Judges the records. `source` names them in messages. Raises PQMError for one that cannot be judged."""
        candidates = [Candidate.of(record, source) for record in records]
        for candidate in candidates:
            if candidate.question_id is None or not candidate.can_be_judged:
                raise PQMError(f"{source}: record {candidate.record.id} is no candidate that can be judged")
        by_question: dict[str, list[int]] = {}
        for i, candidate in enumerate(candidates):
            by_question.setdefault(str(candidate.question_id), []).append(i)
        groups = [np.array(members) for members in by_question.values()]
        numbers = np.array([question_number(name) for name in by_question], dtype=np.uint64)
        test, tuning = split_by_question(numbers, TUNING_FRACTION, seed)
        correct = np.zeros(len(records))
        answers: dict[int, list[int]] = {}
        for g, members in enumerate(groups):
            own = [answer_of(records[i]) for i in members]
            correct[members] = judged([candidates[i] for i in members], own)
            answers[g] = list(group_answers(own))
        return cls([groups[g] for g in tuning], [groups[g] for g in test], correct, [answers[g] for g in test])

    @property
    def candidates(self) -> int:
        """The most candidates that each question has: N."""
        return min(map(len, [*self.tuning, *self.test]))

    def aggregator(self, scores: Sequence[Scores]) -> str:
        """The aggregator with the best Best-of-N on the tuning questions; the first of several."""
        return max(AGGREGATORS, key=lambda name: float(self._best(scores, name, self.tuning).mean()))

    def values(self, scores: Sequence[Scores], aggregator: str) -> np.ndarray:
        """[test questions] expected correctness of the best candidate among N."""
        return self._best(scores, aggregator, self.test)

    @cached_property
    def one_candidate(self) -> np.ndarray:
        """[test questions] expected correctness of a candidate that is drawn at random."""
        return np.array([self.correct[members].mean() for members in self.test])

    def yardsticks(self) -> dict[str, np.ndarray]:
        """{name: [test questions]} of what needs no model: one candidate, the vote, and the best possible."""
        correct = [self.correct[members] for members in self.test]
        vote = [majority_vote([own], [c]).mean for own, c in zip(self.answers, correct, strict=True)]
        n = [self.candidates]
        return {
            "one candidate": self.one_candidate,
            "majority vote": np.array(vote),
            "oracle": expected_best(correct, correct, n)[:, 0],
        }

    def _best(self, scores: Sequence[Scores], aggregator: str, groups: list[np.ndarray]) -> np.ndarray:
        aggregated = aggregate_all(scores, aggregator)
        own = [aggregated[members] for members in groups]
        return expected_best(own, [self.correct[members] for members in groups], [self.candidates])[:, 0]
