"""The pools of candidate solutions that every trial scores: read and judged once."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from pqm_fast.data.candidate import Candidate
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.read import SkipSummary, read_all, read_records
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.aggregate import aggregate_all
from pqm_fast.evaluate.answers import answer_of
from pqm_fast.evaluate.best_of_n import expected_best
from pqm_fast.evaluate.pools import judged
from pqm_fast.scoring.stored import Scores


@dataclass
class Pool:
    """Judged candidates. `members[policy][question]` are numbers of `records`."""

    records: list[Record] = field(default_factory=list)
    correct: np.ndarray = field(default_factory=lambda: np.empty(0))
    """[records] in [0, 1]."""
    questions: list[str] = field(default_factory=list)
    """Ids."""
    members: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    """By policy and number of the question."""

    def picked(self, scores: Sequence[Scores], how: str, ns: Sequence[int]) -> np.ndarray:
        """[policies, questions, ns] expected correctness of the best of n; NaN where a policy has fewer than n."""
        aggregated = aggregate_all(scores, how)
        found = np.full((len(self.members), len(self.questions), len(ns)), np.nan)
        for p, own in enumerate(self.members.values()):
            groups = list(own.values())
            values = expected_best([aggregated[g] for g in groups], [self.correct[g] for g in groups], ns)
            found[p, list(own)] = values
        return found


def write_judged(files: Sequence[str], read: ReadOptions, n: int, out: Path) -> list[str]:
    """Writes the candidates in `files` as records with `question_id`, `policy` and `correct`; returns what it left out.

    A policy's candidates of a question are left out if they are fewer than `n`.

    Raises:
        PQMError: what cannot be read or judged, or no policy with `n` candidates of any question.
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
def read_pool(path: Path) -> Pool:
    """What `write_judged` wrote; kept, for one process scores it again and again."""
    pool = Pool(list(read_records(path)))
    candidates = [Candidate.of(record, str(path)) for record in pool.records]
    pool.correct = np.array([candidate.correct for candidate in candidates])
    numbers: dict[str, int] = {}
    members: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, candidate in enumerate(candidates):
        assert candidate.question_id is not None
        assert candidate.policy is not None
        number = numbers.setdefault(candidate.question_id, len(numbers))
        members[candidate.policy][number].append(i)
    pool.questions = list(numbers)
    pool.members = {policy: {q: np.array(own) for q, own in members[policy].items()} for policy in sorted(members)}
    return pool
