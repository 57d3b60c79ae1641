"""Evaluate scored records with whatever they allow, and print the result as tables."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.aggregate import aggregate
from pqm_fast.evaluate.answers import final_answer, group_answers, marked_answer, same_answer
from pqm_fast.evaluate.best_of_n import Estimate, best_of_n, majority_vote, mean_accuracy, pass_at_n
from pqm_fast.evaluate.processbench import processbench
from pqm_fast.evaluate.step_metrics import step_metrics

CUT_OFF = (
    "candidates have steps without a score (they were cut off): scored by the steps that have one; "
    "`last` never prefers one whose last step has none"
)
Scored = Iterable[tuple[Record, Sequence[float | None]]]


@dataclass(frozen=True, slots=True)
class _Candidate:
    policy: str | None
    scores: Sequence[float | None]
    correct: float
    group: int


def evaluate_steps(scored: Scored, threshold: float = 0.0) -> dict[str, Any]:
    """Step metrics of the labelled records among (record, step scores) pairs.

    Returns:
        `steps`: the result of `step_metrics`; `processbench`: that of `processbench`, if the labels of every
        record name a first error (all correct, or correct up to a wrong step and none labelled correct after
        it); `left_out`: one sentence for each thing that is missing, and why. JSON-ready.

    Raises:
        PQMError: a record whose scores do not fit its steps, or a NaN score.
    """
    pairs = [_checked(record, scores) for record, scores in scored]
    labelled = [(record.labels, scores) for record, scores in pairs if record.labels is not None]
    result: dict[str, Any] = {"left_out": []}
    if len(labelled) < len(pairs):
        result["left_out"].append(f"{len(pairs) - len(labelled)} of {len(pairs)} records have no labels")
    if labelled:
        labels, scores = [y for y, _ in labelled], [q for _, q in labelled]
        result["steps"] = step_metrics(scores, labels, threshold)
        first_errors = [_first_error(y) for y in labels]
        unfit = first_errors.count(None)
        if unfit:
            result["left_out"].append(
                f"ProcessBench: the labels of {unfit} of {len(labels)} records do not name a first error"
            )
        else:
            known = [first for first in first_errors if first is not None]
            result["processbench"] = processbench(scores, known, threshold)
        cut = sum(q is None and y is not None for ys, qs in labelled for y, q in zip(ys, qs, strict=True))
        if cut:
            result["left_out"].append(f"{cut} labelled steps have no score (they were cut off)")
    return result


def evaluate_pools(
    scored: Scored, how: Sequence[str] = ("min",), ns: Sequence[int] | None = None, ties: str = "share"
) -> dict[str, Any]:
    """Best-of-N over candidate solutions: records with `question_id` in `extra`.

    A candidate is correct as its `extra["correct"]` says; without that, if its final answer is the same as
    `extra["answer"]` (a solution without a final answer is wrong). `extra["policy"]` names who wrote it.

    Args:
        scored: pairs of (record, step scores).
        how: the aggregators to compare (`aggregate`).
        ns: subset sizes; default 1, 2, 4, ... up to the largest that half of the questions allow.
        ties: who wins a tied majority vote, `share` or `first` (`majority_vote`).

    Returns:
        `overall` (all candidates of a question as one pool) and `policies` (one entry per policy): each holds
        `questions`, `candidates`, `mean_accuracy`, `majority_vote`, `best_of_n[how][n]` and `pass_at_n[n]`; a
        figure is {mean, low, high, questions}, n a string; `majority_vote`, over the whole pool whatever n is,
        adds the rule `ties` and `votes`, their mean number per question. `left_out`: what is missing, and why.
        JSON-ready.

    Raises:
        PQMError: a record whose scores do not fit its steps, a NaN score, an unknown aggregator, or n < 1.
    """
    if ns is not None and min(ns, default=1) < 1:
        raise PQMError(f"n must be at least 1, found {min(ns)}")
    missing: Counter[str] = Counter()
    questions = [_candidates(pool, missing) for pool in _by_question(scored, missing)]
    questions = [pool for pool in questions if pool]
    result: dict[str, Any] = {"left_out": [f"{count} {reason}" for reason, count in missing.items()]}
    if not questions:
        result["left_out"].append("Best-of-N: no candidate solutions whose correctness is known")
        return result
    asked = ns or ()
    if ns is None:
        half = sorted(map(len, questions))[len(questions) // 2]
        ns = [2**k for k in range(half.bit_length())]
    result["overall"] = _pool_figures(questions, how, ns, ties)
    policies: dict[str, list[list[_Candidate]]] = defaultdict(list)
    for pool in questions:
        for name in dict.fromkeys(candidate.policy for candidate in pool):
            if name is not None:
                policies[name].append([candidate for candidate in pool if candidate.policy == name])
    result["policies"] = {name: _pool_figures(pools, how, ns, ties) for name, pools in sorted(policies.items())}
    for name, figures in [("all candidates", result["overall"]), *result["policies"].items()]:
        for n in asked:
            if str(n) not in figures["pass_at_n"]:
                result["left_out"].append(f"n={n}, {name}: no question has that many candidates")
        for n, estimate in figures["pass_at_n"].items():
            if estimate["questions"] < figures["questions"]:
                fewer = figures["questions"] - estimate["questions"]
                result["left_out"].append(f"n={n}, {name}: {fewer} questions have fewer candidates than that")
    return result


def table(summary: dict[str, Any]) -> str:
    """The result of `evaluate_steps` or `evaluate_pools` (or both in one dict) as aligned plain text."""
    parts = []
    for key, title in (("steps", "Steps"), ("processbench", "ProcessBench")):
        if key in summary:
            rows = [[name.replace("_", " "), _number(value)] for name, value in summary[key].items()]
            parts.append(f"{title}\n" + _aligned(rows))
    if "overall" in summary:
        entries = [*summary["policies"].items(), ("all candidates", summary["overall"])]
        ns = sorted({n for _, entry in entries for n in entry["pass_at_n"]}, key=int)
        majority = f"majority ({summary['overall']['majority_vote']['ties']})"
        head = ["policy", "questions", "candidates", "mean", majority, "votes", "pick"]
        rows = [[*head, *(f"n={n}" for n in ns)]]
        for name, entry in entries:
            counts = [str(entry["questions"]), str(entry["candidates"])]
            vote = entry["majority_vote"]
            head = [name, *counts, _figure(entry["mean_accuracy"]), _figure(vote), f"{vote['votes']:.3g}"]
            for how, best in [*entry["best_of_n"].items(), ("pass@n", entry["pass_at_n"])]:
                rows.append([*head, how, *(_figure(best.get(n)) for n in ns)])
                head = [""] * len(head)
        title = "Best-of-N: expected accuracy over all subsets of n candidates, +- 95% interval over questions"
        note = "  majority (how ties are decided): the vote of a question's whole pool; votes: mean number per question"
        parts.append(f"{title}\n{_aligned(rows)}\n{note}")
    if summary.get("left_out"):
        parts.append("Left out\n" + "\n".join(f"  {reason}" for reason in summary["left_out"]))
    return "\n\n".join(parts)


def _checked(record: Record, scores: Sequence[float | None]) -> tuple[Record, Sequence[float | None]]:
    if len(scores) != len(record.steps):
        raise PQMError(f"record {record.id}: {len(scores)} scores for {len(record.steps)} steps: pass one per step")
    return record, scores


def _first_error(labels: Sequence[float | None]) -> int | None:
    """Index of the first wrong step, -1 if every step is correct, None if the labels do not say."""
    wrong = next((t for t, label in enumerate(labels) if label is not None and label < 0.5), len(labels))
    if None in labels[:wrong] or any(label is not None and label >= 0.5 for label in labels[wrong:]):
        return None
    return wrong if wrong < len(labels) else -1


def _by_question(scored: Scored, missing: Counter[str]) -> Iterable[list[tuple[Record, Sequence[float | None]]]]:
    pools: dict[str, list[tuple[Record, Sequence[float | None]]]] = defaultdict(list)
    for record, scores in scored:
        if record.extra.get("question_id") is None:
            missing["records without question_id: not candidates of a pool"] += 1
        elif record.extra.get("correct") is None and record.extra.get("answer") is None:
            missing["candidates with neither `answer` nor `correct`: nothing says whether they are right"] += 1
        else:
            pools[str(record.extra["question_id"])].append(_checked(record, scores))
    return pools.values()


def _candidates(pool: list[tuple[Record, Sequence[float | None]]], missing: Counter[str]) -> list[_Candidate]:
    answers = [final_answer("\n".join(record.steps)) for record, _ in pool]
    candidates = []
    for (record, scores), answer, group in zip(pool, answers, group_answers(answers), strict=True):
        correct = record.extra.get("correct")
        if correct is None:
            gold = str(record.extra["answer"])  # GSM8K and MATH give a whole solution as the answer
            correct = answer is not None and same_answer(answer, marked_answer(gold) or gold)
        if answer is None:
            missing["candidates without a final answer: no vote, and wrong unless `correct` says otherwise"] += 1
        if all(score is None for score in scores):
            missing["candidates without a scored step: kept, and never preferred"] += 1
        elif None in scores:
            missing[CUT_OFF] += 1
        policy = record.extra.get("policy")
        candidates.append(_Candidate(None if policy is None else str(policy), scores, float(correct), group))
    return candidates


def _pool_figures(pools: list[list[_Candidate]], how: Sequence[str], ns: Sequence[int], ties: str) -> dict[str, Any]:
    correct = [[candidate.correct for candidate in pool] for pool in pools]
    groups = [[candidate.group for candidate in pool] for pool in pools]
    votes = sum(group >= 0 for pool in groups for group in pool)

    def by_n(estimate: Callable[[list[int], int], Estimate]) -> dict[str, Any]:
        """{n: figure} over the questions that have n candidates; n is absent where none has."""
        enough = {n: [i for i, pool in enumerate(pools) if len(pool) >= n] for n in ns}
        return {str(n): asdict(estimate(chosen, n)) for n, chosen in enough.items() if chosen}

    def best(name: str) -> dict[str, Any]:
        scores = [[aggregate(candidate.scores, name) for candidate in pool] for pool in pools]
        return by_n(lambda chosen, n: best_of_n([scores[i] for i in chosen], [correct[i] for i in chosen], n))

    return {
        "questions": len(pools),
        "candidates": sum(map(len, pools)),
        "mean_accuracy": asdict(mean_accuracy(correct)),
        "majority_vote": {**asdict(majority_vote(groups, correct, ties)), "ties": ties, "votes": votes / len(pools)},
        "best_of_n": {name: best(name) for name in how},
        "pass_at_n": by_n(lambda chosen, n: pass_at_n([correct[i] for i in chosen], n)),
    }


def _number(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def _figure(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    mean, low, high = estimate["mean"], estimate["low"], estimate["high"]
    # The wider side: the other may have been clipped at 0 or 1.
    return f"{mean:.3f}" if high is None else f"{mean:.3f} +-{max(high - mean, mean - low):.3f}"


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"  {line}".rstrip() for line in lines)
