"""Pools of candidate solutions, judged once before the trials, and Best-of-N from a trial's scores."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from pqm_fast.data.candidate import Candidate
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.read import SkipSummary, read_all, read_records
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.aggregate import TEMPERATURE, aggregate_all
from pqm_fast.evaluate.answers import answer_of
from pqm_fast.evaluate.best_of_n import expected_best
from pqm_fast.evaluate.outcomes import judged
from pqm_fast.scoring.stored import Scores


@dataclass(frozen=True, slots=True)
class JudgedPool:
    """Candidate solutions of questions by several policies, each with its correctness."""

    records: list[Record]
    correct: np.ndarray
    """[records] in [0, 1]."""
    questions: list[str]
    """The ids of the questions."""
    members: dict[str, dict[int, np.ndarray]]
    """`members[policy][question]`: indices into `records`; the question is an index into `questions`."""

    def best_of_n(
        self, scores: Sequence[Scores], aggregator: str, ns: Sequence[int], temperature: float = TEMPERATURE
    ) -> np.ndarray:
        """Expected correctness of the candidate with the best score among n, from step scores per record.

        Returns:
            [policies, questions, ns], float64; NaN where a policy has fewer than n candidates.
        """
        aggregated = aggregate_all(scores, aggregator, temperature)
        expected = np.full((len(self.members), len(self.questions), len(ns)), np.nan)
        for p, groups in enumerate(self.members.values()):
            indices = list(groups.values())
            values = expected_best([aggregated[g] for g in indices], [self.correct[g] for g in indices], ns)
            expected[p, list(groups)] = values
        return expected


def write_judged_pool(files: Sequence[str], read: ReadOptions, n: int, out: Path) -> list[str]:
    """Writes the candidates in `files` as records with `question_id`, `policy` and `correct`.

    Leaves out a policy's candidates of a question where there are fewer than `n`.

    Returns:
        A message for each kind of records that was left out.

    Raises:
        PQMError: a record cannot be read or judged, or no policy has `n` candidates of any question.
    """
    names, skipped = ", ".join(files), SkipSummary()
    questions: dict[str, list[Candidate]] = defaultdict(list)
    for record in read_all(files, read, skipped):
        candidate = Candidate.of(record, names)
        if candidate.question_id is None:
            raise PQMError(f"{names}: record {record.id} is no candidate of a pool (no question_id)")
        if not candidate.can_be_judged:
            raise PQMError(f"{names}: record {record.id}: neither `answer` nor `correct` says whether it is right")
        first = questions[candidate.question_id][0].record if candidate.question_id in questions else record
        questions[candidate.question_id].append(candidate)
        if record.prompt != first.prompt:
            raise PQMError(
                f"{names}: question_id {candidate.question_id} is of two questions, by records {first.id} and "
                f"{record.id}; give each question an id of its own"
            )
    rows, few = [], 0
    for question, candidates in questions.items():
        answers = [answer_of(candidate.record) for candidate in candidates]
        by_policy: dict[str, list[dict[str, object]]] = defaultdict(list)
        for candidate, correct in zip(candidates, judged(candidates, answers), strict=True):
            record = candidate.record
            row = {"prompt": record.prompt, "completions": record.steps, "labels": record.labels}
            policy = "all" if candidate.policy is None else candidate.policy
            by_policy[policy].append({**row, "question_id": question, "policy": policy, "correct": correct})
        few += sum(len(group) < n for group in by_policy.values())
        rows += [row for group in by_policy.values() if len(group) >= n for row in group]
    if not rows:
        raise PQMError(f"{names}: no policy has {n} candidates of any question; choose a smaller --n")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    left_out = [str(skipped)] if skipped.total else []
    if few:
        left_out.append(f"{names}: {few:,} groups of one policy and question left out: fewer than {n} candidates")
    return left_out


@lru_cache(maxsize=4)
def read_judged_pool(path: Path) -> JudgedPool:
    """Reads what `write_judged_pool` wrote. Cached: one process scores the same pool for many trials."""
    records = list(read_records(path))
    candidates = [Candidate.of(record, str(path)) for record in records]
    numbers: dict[str, int] = {}
    members: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, candidate in enumerate(candidates):
        assert candidate.question_id is not None
        assert candidate.policy is not None
        number = numbers.setdefault(candidate.question_id, len(numbers))
        members[candidate.policy][number].append(i)
    return JudgedPool(
        records,
        correct=np.array([candidate.correct for candidate in candidates]),
        questions=list(numbers),
        members={
            policy: {question: np.array(indices) for question, indices in members[policy].items()}
            for policy in sorted(members)
        },
    )
