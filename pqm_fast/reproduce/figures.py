"""Best-of-N of a model's scores, and the yardsticks without a model: of the first N as published, and expected."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pqm_fast.evaluate.aggregate import aggregate_all
from pqm_fast.evaluate.answers import answer_of, group_answers
from pqm_fast.evaluate.best_of_n import expected_best, first_best, mean_accuracy
from pqm_fast.evaluate.estimate import Estimate
from pqm_fast.evaluate.vote import expected_votes, majority_vote
from pqm_fast.scoring.stored import Scores
from pqm_fast.study.interval import interval
from pqm_fast.study.judged_pool import JudgedPool

Values = dict[str, np.ndarray]
"""Figures of each question [questions, ns]: `first_n`, and `expected` over all subsets of N."""


def best_of_n(pool: JudgedPool, scores: Sequence[Scores], how: str, ns: Sequence[int]) -> dict[str, Values]:
    """{policy: correctness of the solution with the best score of N}, from step scores per record of the pool."""
    aggregated = aggregate_all(scores, how)
    by_policy = {}
    for policy, groups in pool.members.items():
        own = [aggregated[group] for group in groups.values()], [pool.correct[group] for group in groups.values()]
        by_policy[policy] = {"first_n": first_best(*own, ns), "expected": expected_best(*own, ns)}
    return by_policy


def estimates(values: Values, ns: Sequence[int]) -> dict[str, Any]:
    """{kind: {n: mean with its interval over questions}}, JSON-ready."""
    return {
        kind: {str(n): asdict(Estimate.of(by_question[:, j])) for j, n in enumerate(ns)}
        for kind, by_question in values.items()
    }


def differences(values: Values, baseline: Values, ns: Sequence[int]) -> dict[str, Any]:
    """As `estimates`, of the difference from the baseline, question by question."""
    # without digits that are rounding alone: a difference of nothing but these would look certain
    by_kind = {kind: (values[kind] - baseline[kind]).round(12) + 0.0 for kind in values}
    return {
        kind: {str(n): asdict(interval(own[None, :, j])) for j, n in enumerate(ns)} for kind, own in by_kind.items()
    }


def yardsticks(pool: JudgedPool, ns: Sequence[int], seed: int) -> dict[str, Any]:
    """{policy: figures that need no model}, JSON-ready.

    `mean_accuracy`: of a solution drawn at random. `vote` (the most frequent answer) and `any` (pass@N), each with
    the kinds and numbers of `estimates`. Where there are many subsets, expected votes are over random ones (`seed`).
    """
    by_policy = {}
    for policy, groups in pool.members.items():
        correct = [pool.correct[group] for group in groups.values()]
        answers = [np.array(group_answers([answer_of(pool.records[i]) for i in group])) for group in groups.values()]
        equal = [np.zeros(len(group)) for group in groups.values()]
        votes, variances = expected_votes(answers, correct, [equal], ns, seed=seed)
        by_policy[policy] = {
            "questions": len(groups),
            "candidates": sum(map(len, groups.values())),
            "mean_accuracy": asdict(mean_accuracy(correct)),
            "vote": {
                # a tie goes to the answer that comes first, as in the published code
                "first_n": {
                    str(n): asdict(majority_vote([own[:n] for own in answers], [own[:n] for own in correct], "first"))
                    for n in ns
                },
                "expected": {str(n): asdict(Estimate.of(votes[0, :, j], variances[0, :, j])) for j, n in enumerate(ns)},
            },
            "any": estimates(
                {"first_n": first_best(correct, correct, ns), "expected": expected_best(correct, correct, ns)}, ns
            ),
        }
    return by_policy
