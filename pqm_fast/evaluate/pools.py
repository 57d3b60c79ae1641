"""Evaluates pools of candidate solutions: Best-of-N, votes and pass@N, overall and by policy."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from pqm_fast.data.candidate import Candidate
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.aggregate import AGGREGATORS, TEMPERATURE, aggregate_all, log_odds, log_weight
from pqm_fast.evaluate.answers import answer_of, group_answers
from pqm_fast.evaluate.best_of_n import expected_best, mean_accuracy
from pqm_fast.evaluate.calibrate import FOLDS, deal
from pqm_fast.evaluate.estimate import Estimate
from pqm_fast.evaluate.outcomes import judged
from pqm_fast.evaluate.probabilities import cross_scaled
from pqm_fast.evaluate.steps import Scored, checked
from pqm_fast.evaluate.vote import DRAWS, expected_votes, majority_vote
from pqm_fast.scoring.stored import Scores

CUT_OFF = "candidates have steps without a score (they were cut off): kept, and never preferred"
CUT_SHORT = "candidates cut off (`finish_reason` length): no answer, no vote, and wrong unless `correct` says otherwise"
Pools = list[np.ndarray]  # per question, the numbers of its candidates


@dataclass(frozen=True, slots=True)
class _Columns:
    """Columns with one entry per candidate of all questions."""

    policy: list[str | None]
    correct: np.ndarray  # [candidates] float64 in [0, 1]
    answer: np.ndarray  # [candidates] answer class within the question, -1 for none
    scores: dict[str, np.ndarray]  # {aggregator: [candidates] float64}


def evaluate_pools(
    scored: Scored,
    how: Sequence[str] = tuple(AGGREGATORS),
    ns: Sequence[int] | None = None,
    ties: str = "share",
    draws: int = DRAWS,
    seed: int = 0,
    progress: bool = False,
    temperature: float = TEMPERATURE,
) -> dict[str, Any]:
    """Best-of-N over candidate solutions: records with `question_id` in `extra` (`Candidate`).

    `extra["correct"]` decides whether a candidate is correct. Without it, the candidate is correct if its final answer
    is right for `extra["answer"]` (`right_answer`). A solution without a final answer is wrong, and so is one that was
    cut off (`extra["finish_reason"]` is `length`), because it does not reach its answer. `extra["policy"]` names the
    model that wrote it.

    Args:
        scored: pairs of (record, step scores).
        how: the aggregators to compare (`aggregate`).
        ns: subset sizes; default 1, 2, 4, ... up to the largest that half of the questions allow.
        ties: who wins a tied majority vote of the whole pool, `share` or `first` (`majority_vote`).
        draws: random subsets per question for the votes of n, where there are more than that.
        seed: of the random subsets.
        progress: show a bar over the questions while their answers are compared.
        temperature: of `softmin` (`aggregate`).

    Returns:
        `overall` (all candidates of a question as one pool) and `policies` (one entry per policy): each holds
        `questions`, `candidates`, `mean_accuracy`, `majority_vote`, `best_of_n[how][n]`, `self_consistency[n]`,
        `weighted_vote[how][n]` and `pass_at_n[n]`. A figure is {mean, low, high, questions, sampling_error} and n is a
        string. `majority_vote` is over the whole pool whatever n is, and adds the rule `ties` and `votes`, their mean
        number per question. `temperature`: if `softmin` is among `how`. `solution_probabilities[how]`: the
        result of `cross_scaled` for the candidates' aggregated scores and correctness, if it can be computed.
        `left_out`: what is missing, and why. JSON-ready.

    Raises:
        PQMError: a record whose scores do not fit its steps, a candidate whose `correct` is not true, false or a number
            from 0 to 1, a NaN score, an unknown aggregator, a temperature that is not finite and above 0, n < 1,
            draws < 2, or seed < 0.
    """
    if ns is not None and min(ns, default=1) < 1:
        raise PQMError(f"n must be at least 1, found {min(ns)}")
    remarks: Counter[str] = Counter()
    groups = _by_question(scored, remarks)
    result: dict[str, Any] = {}
    if groups:
        columns, pools = _columns(groups, how, temperature, remarks, progress)
        requested = ns or ()
        if ns is None:
            median_size = sorted(map(len, pools))[len(pools) // 2]
            ns = [2**k for k in range(median_size.bit_length())]
        ns = sorted(set(ns))
        if "softmin" in how:
            result["temperature"] = temperature
        result["overall"] = _figures(columns, pools, ns, ties, draws, seed)
        result["policies"] = {
            name: _figures(columns, policy_pools, ns, ties, draws, seed)
            for name, policy_pools in sorted(_by_policy(columns, pools).items())
        }
        folds = deal([group[0][0].record.prompt for group in groups])
        result["solution_probabilities"] = _probabilities(columns, pools, folds)
    result["left_out"] = [f"{count} {reason}" for reason, count in remarks.items()]
    if not groups:
        result["left_out"].append("Best-of-N: no candidate solutions whose correctness is known")
        return result
    if not result["solution_probabilities"]:
        del result["solution_probabilities"]
        result["left_out"].append(
            f"probabilities of solutions: {FOLDS - 1} of {FOLDS} parts of the questions must hold correct and wrong "
            "ones"
        )
    for name, figures in [("all candidates", result["overall"]), *result["policies"].items()]:
        for n in requested:
            if str(n) not in figures["pass_at_n"]:
                result["left_out"].append(f"n={n}, {name}: no question has that many candidates")
        for n, estimate in figures["pass_at_n"].items():
            if estimate["questions"] < figures["questions"]:
                fewer = figures["questions"] - estimate["questions"]
                result["left_out"].append(f"n={n}, {name}: {fewer} questions have fewer candidates than that")
    return result


def _by_question(scored: Scored, remarks: Counter[str]) -> list[list[tuple[Candidate, Scores]]]:
    pools: dict[str, list[tuple[Candidate, Scores]]] = defaultdict(list)
    for record, scores in scored:
        candidate = Candidate.of(record)
        if candidate.question_id is None:
            remarks["records without question_id: not candidates of a pool"] += 1
        elif not candidate.can_be_judged:
            remarks["candidates with neither `answer` nor `correct`: nothing says whether they are right"] += 1
        else:
            checked(record, scores)
            pools[candidate.question_id].append((candidate, scores))
    return list(pools.values())


def _columns(
    groups: list[list[tuple[Candidate, Scores]]],
    how: Sequence[str],
    temperature: float,
    remarks: Counter[str],
    progress: bool,
) -> tuple[_Columns, Pools]:
    correct, classes = [], []
    for group in tqdm(groups, desc="answers", unit="question", disable=not progress, dynamic_ncols=True):
        answers = [answer_of(candidate.record) for candidate, _ in group]
        classes += group_answers(answers)
        correct += judged([candidate for candidate, _ in group], answers)
    pairs = [pair for group in groups for pair in group]
    for (candidate, scores), answer_class in zip(pairs, classes, strict=True):
        if candidate.cut_off:
            remarks[CUT_SHORT] += 1
        elif answer_class < 0:
            remarks["candidates without a final answer: no vote, and wrong unless `correct` says otherwise"] += 1
        if all(score is None for score in scores):
            remarks["candidates without a scored step: kept, and never preferred"] += 1
        elif None in scores:
            remarks[CUT_OFF] += 1
    columns = _Columns(
        policy=[candidate.policy for candidate, _ in pairs],
        correct=np.array(correct),
        answer=np.array(classes),
        scores={name: aggregate_all([scores for _, scores in pairs], name, temperature) for name in dict.fromkeys(how)},
    )
    return columns, np.split(np.arange(len(pairs)), np.cumsum([len(group) for group in groups])[:-1])


def _probabilities(columns: _Columns, pools: Pools, folds: np.ndarray) -> dict[str, Any]:
    """{aggregator: the result of `cross_scaled`}; empty if the folds do not allow it. A candidate that was cut off has
    no probability: it is not part of these figures."""
    fold = np.empty(len(columns.correct), dtype=np.int64)
    for pool, pool_fold in zip(pools, folds, strict=True):
        fold[pool] = pool_fold
    results = {}
    for name, scores in columns.scores.items():
        has_score = np.isfinite(scores)
        logit = log_odds(scores[has_score], name)
        scaled = cross_scaled(logit, columns.correct[has_score], fold[has_score])
        if scaled is not None:
            results[name] = scaled
    return results


def _by_policy(columns: _Columns, pools: Pools) -> dict[str, Pools]:
    policies: dict[str, Pools] = defaultdict(list)
    for pool in pools:
        for name in dict.fromkeys(columns.policy[i] for i in pool):
            if name is not None:
                policies[name].append(np.array([i for i in pool if columns.policy[i] == name]))
    return policies


def _figures(columns: _Columns, pools: Pools, ns: Sequence[int], ties: str, draws: int, seed: int) -> dict[str, Any]:
    correct, answers = ([column[pool] for pool in pools] for column in (columns.correct, columns.answer))
    votes = sum(int((pool_answers >= 0).sum()) for pool_answers in answers)

    def by_n(values: np.ndarray, variances: np.ndarray | None = None) -> dict[str, Any]:
        """{n: figure} from [questions, ns] over the questions that have n candidates; n is absent where none has."""
        figures = {}
        for j, n in enumerate(ns):
            has_n = ~np.isnan(values[:, j])
            if has_n.any():
                estimate = Estimate.of(values[has_n, j], None if variances is None else variances[has_n, j])
                figures[str(n)] = asdict(estimate)
        return figures

    weightings = [[np.zeros(len(pool)) for pool in pools]]
    weightings += [[log_weight(scores[pool], name) for pool in pools] for name, scores in columns.scores.items()]
    votes_of_n = [
        by_n(values, variances)
        for values, variances in zip(*expected_votes(answers, correct, weightings, ns, draws, seed), strict=True)
    ]
    return {
        "questions": len(pools),
        "candidates": sum(map(len, pools)),
        "mean_accuracy": asdict(mean_accuracy(correct)),
        "majority_vote": {**asdict(majority_vote(answers, correct, ties)), "ties": ties, "votes": votes / len(pools)},
        "best_of_n": {
            name: by_n(expected_best([scores[pool] for pool in pools], correct, ns))
            for name, scores in columns.scores.items()
        },
        "self_consistency": votes_of_n[0],
        "weighted_vote": dict(zip(columns.scores, votes_of_n[1:], strict=True)),
        "pass_at_n": by_n(expected_best(correct, correct, ns)),
    }
