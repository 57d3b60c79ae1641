"""Everything that pools of candidate solutions allow: Best-of-N, votes and pass@N, over all and by policy."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from pqm_fast.data.checks import show
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.aggregate import AGGREGATORS, aggregate_all, log_weight
from pqm_fast.evaluate.answers import answer_of, gold_answer, group_answers, is_cut_off, right_answer
from pqm_fast.evaluate.best_of_n import expected_best, mean_accuracy
from pqm_fast.evaluate.estimate import Estimate
from pqm_fast.evaluate.steps import Pair, Scored, checked
from pqm_fast.evaluate.vote import DRAWS, expected_votes, majority_vote

CUT_OFF = "candidates have steps without a score (they were cut off): kept, and never preferred"
CUT_SHORT = "candidates cut off (`finish_reason` length): no answer, no vote, and wrong unless `correct` says otherwise"
Pools = list[np.ndarray]  # per question, the numbers of its candidates


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Columns, one entry per candidate of all questions."""

    policy: list[str | None]
    correct: np.ndarray  # [candidates] in [0, 1]
    answer: np.ndarray  # [candidates] answer class within the question, -1 for none
    scores: dict[str, np.ndarray]  # {aggregator: [candidates]}


def evaluate_pools(
    scored: Scored,
    how: Sequence[str] = tuple(AGGREGATORS),
    ns: Sequence[int] | None = None,
    ties: str = "share",
    draws: int = DRAWS,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Best-of-N over candidate solutions: records with `question_id` in `extra`.

    A candidate is correct as its `extra["correct"]` says; without that, if its final answer is right for
    `extra["answer"]` (`right_answer`). A solution without a final answer is wrong; so is one that was cut off
    (`extra["finish_reason"]` is `length`), for it has none. `extra["policy"]` names who wrote it.

    Args:
        scored: pairs of (record, step scores).
        how: the aggregators to compare (`aggregate`).
        ns: subset sizes; default 1, 2, 4, ... up to the largest that half of the questions allow.
        ties: who wins a tied majority vote of the whole pool, `share` or `first` (`majority_vote`).
        draws, seed: random subsets per question for the votes of n, where there are more than that.
        progress: show a bar over the questions while their answers are compared.

    Returns:
        `overall` (all candidates of a question as one pool) and `policies` (one entry per policy): each holds
        `questions`, `candidates`, `mean_accuracy`, `majority_vote`, `best_of_n[how][n]`, `self_consistency[n]`,
        `weighted_vote[how][n]` and `pass_at_n[n]`; a figure is {mean, low, high, questions, sampling_error}, n a
        string; `majority_vote`, over the whole pool whatever n is, adds the rule `ties` and `votes`, their mean
        number per question. `left_out`: what is missing, and why. JSON-ready.

    Raises:
        PQMError: a record whose scores do not fit its steps, a NaN score, an unknown aggregator, n < 1, draws < 2, or
            seed < 0.
    """
    if ns is not None and min(ns, default=1) < 1:
        raise PQMError(f"n must be at least 1, found {min(ns)}")
    missing: Counter[str] = Counter()
    groups = _by_question(scored, missing)
    result: dict[str, Any] = {}
    if groups:
        candidates, pools = _columns(groups, how, missing, progress)
        asked = ns or ()
        if ns is None:
            half = sorted(map(len, pools))[len(pools) // 2]
            ns = [2**k for k in range(half.bit_length())]
        ns = sorted(set(ns))
        result["overall"] = _figures(candidates, pools, ns, ties, draws, seed)
        result["policies"] = {
            name: _figures(candidates, own, ns, ties, draws, seed)
            for name, own in sorted(_by_policy(candidates, pools).items())
        }
    result["left_out"] = [f"{count} {reason}" for reason, count in missing.items()]
    if not groups:
        result["left_out"].append("Best-of-N: no candidate solutions whose correctness is known")
        return result
    for name, figures in [("all candidates", result["overall"]), *result["policies"].items()]:
        for n in asked:
            if str(n) not in figures["pass_at_n"]:
                result["left_out"].append(f"n={n}, {name}: no question has that many candidates")
        for n, estimate in figures["pass_at_n"].items():
            if estimate["questions"] < figures["questions"]:
                fewer = figures["questions"] - estimate["questions"]
                result["left_out"].append(f"n={n}, {name}: {fewer} questions have fewer candidates than that")
    return result


def _by_question(scored: Scored, missing: Counter[str]) -> list[list[Pair]]:
    pools: dict[str, list[Pair]] = defaultdict(list)
    for record, scores in scored:
        if record.extra.get("question_id") is None:
            missing["records without question_id: not candidates of a pool"] += 1
        elif record.extra.get("correct") is None and record.extra.get("answer") is None:
            missing["candidates with neither `answer` nor `correct`: nothing says whether they are right"] += 1
        else:
            pools[str(record.extra["question_id"])].append(checked(record, scores))
    return list(pools.values())


def _columns(
    groups: list[list[Pair]], how: Sequence[str], missing: Counter[str], progress: bool
) -> tuple[_Candidates, Pools]:
    pairs = [pair for group in groups for pair in group]
    correct, classes = [], []
    for group in tqdm(groups, desc="answers", unit="question", disable=not progress, dynamic_ncols=True):
        answers = [answer_of(record) for record, _ in group]
        own = group_answers(answers)
        classes += own
        correct += judged([record for record, _ in group], answers)
    for (record, scores), number in zip(pairs, classes, strict=True):
        if is_cut_off(record):
            missing[CUT_SHORT] += 1
        elif number < 0:
            missing["candidates without a final answer: no vote, and wrong unless `correct` says otherwise"] += 1
        if all(score is None for score in scores):
            missing["candidates without a scored step: kept, and never preferred"] += 1
        elif None in scores:
            missing[CUT_OFF] += 1
    policies = [record.extra.get("policy") for record, _ in pairs]
    candidates = _Candidates(
        policy=[None if policy is None else str(policy) for policy in policies],
        correct=np.array(correct),
        answer=np.array(classes),
        scores={name: aggregate_all([scores for _, scores in pairs], name) for name in dict.fromkeys(how)},
    )
    return candidates, np.split(np.arange(len(pairs)), np.cumsum([len(group) for group in groups])[:-1])


def check_correct(record: Record) -> None:
    """PQMError unless `extra["correct"]` is absent, true, false or a number from 0 to 1."""
    correct = record.extra.get("correct")
    fits = isinstance(correct, (int, float)) and 0 <= correct <= 1  # true and false are numbers; NaN is not among these
    if correct is not None and not fits:
        raise PQMError(f"record {record.id}: correct is {show(correct)}; give true, false or a number from 0 to 1")


def judged(records: Sequence[Record], answers: Sequence[str | None]) -> list[float]:
    """Correctness of solutions of one question: as `extra["correct"]` says, else whether `answers`, their final ones,
    are right for `extra["answer"]` (`right_answer`)."""
    correct = []
    right: dict[tuple[str, str], bool] = {}  # one comparison per answer and gold answer
    for record, answer in zip(records, answers, strict=True):
        given = record.extra.get("correct")
        if given is None and answer is not None:
            key = answer, str(record.extra["answer"])
            if key not in right:  # GSM8K and MATH give a whole solution as the answer
                right[key] = right_answer(answer, gold_answer(key[1]))
            given = right[key]
        correct.append(float(given or 0))
    return correct


def _by_policy(candidates: _Candidates, pools: Pools) -> dict[str, Pools]:
    policies: dict[str, Pools] = defaultdict(list)
    for pool in pools:
        for name in dict.fromkeys(candidates.policy[i] for i in pool):
            if name is not None:
                policies[name].append(np.array([i for i in pool if candidates.policy[i] == name]))
    return policies


def _figures(
    candidates: _Candidates, pools: Pools, ns: Sequence[int], ties: str, draws: int, seed: int
) -> dict[str, Any]:
    correct, answers = ([column[pool] for pool in pools] for column in (candidates.correct, candidates.answer))
    votes = sum(int((own >= 0).sum()) for own in answers)

    def by_n(values: np.ndarray, variances: np.ndarray | None = None) -> dict[str, Any]:
        """{n: figure} from [questions, ns] over the questions that have n candidates; n is absent where none has."""
        found = {}
        for j, n in enumerate(ns):
            some = ~np.isnan(values[:, j])
            if some.any():
                estimate = Estimate.of(values[some, j], None if variances is None else variances[some, j])
                found[str(n)] = asdict(estimate)
        return found

    weightings = [[np.zeros(len(pool)) for pool in pools]]
    weightings += [[log_weight(own[pool], name) for pool in pools] for name, own in candidates.scores.items()]
    votes_of_n = [
        by_n(v, e) for v, e in zip(*expected_votes(answers, correct, weightings, ns, draws, seed), strict=True)
    ]
    return {
        "questions": len(pools),
        "candidates": sum(map(len, pools)),
        "mean_accuracy": asdict(mean_accuracy(correct)),
        "majority_vote": {**asdict(majority_vote(answers, correct, ties)), "ties": ties, "votes": votes / len(pools)},
        "best_of_n": {
            name: by_n(expected_best([own[pool] for pool in pools], correct, ns))
            for name, own in candidates.scores.items()
        },
        "self_consistency": votes_of_n[0],
        "weighted_vote": dict(zip(candidates.scores, votes_of_n[1:], strict=True)),
        "pass_at_n": by_n(expected_best(correct, correct, ns)),
    }
