"""What a search found beside plain samples with as many tokens, from the pool that it wrote."""

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pqm_fast.data import read_records
from pqm_fast.data.candidate import Candidate
from pqm_fast.evaluate.aggregate import aggregate_all, log_weight
from pqm_fast.evaluate.answers import answer_of, group_answers
from pqm_fast.evaluate.best_of_n import expected_best
from pqm_fast.evaluate.estimate import Estimate, Z
from pqm_fast.evaluate.outcomes import judged
from pqm_fast.evaluate.vote import expected_votes

CHOICES = ("best", "weighted_vote", "majority_vote", "any_right", "mean_accuracy")
COLUMNS = ("questions", "solutions", "tokens", "best", "weighted vote", "majority vote", "any right", "one solution")


def figures(pool: Path, how: str) -> dict[str, Any]:
    """The figures of a pool that `pqm-fast search` wrote, where `how` aggregates step scores.

    Returns:
        `methods`: {beam, dvts or samples: `questions`, mean `solutions` and `tokens` of a question, how many solutions
        in all were `cut_off` or are otherwise `unscored`, and by choice, over the questions whose answer is known,
        {mean, low, high, questions, sampling_error}}. The choices are the solution with the highest score (`best`), the
        votes of all solutions, an oracle (`any_right`), and one solution drawn at random.
        `difference`: of `best` between the search and the samples; see `paired_difference`. `by_question`: the values
        of `best`, in the order of the pool, by method.
    """
    groups: dict[str, dict[str, list[Candidate]]] = defaultdict(dict)
    for record in read_records(pool):
        candidate = Candidate.of(record)
        groups[record.extra["method"]].setdefault(str(candidate.question_id), []).append(candidate)
    methods: dict[str, Any] = {}
    best: dict[str, np.ndarray] = {}
    for method, questions in groups.items():
        tokens = [pool[0].record.extra["tokens_written"][method] for pool in questions.values()]
        methods[method] = {
            "questions": len(questions),
            "solutions": float(np.mean([len(pool) for pool in questions.values()])),
            "tokens": float(np.mean(tokens)),
            "cut_off": sum(candidate.cut_off for pool in questions.values() for candidate in pool),
            "unscored": sum(
                None in candidate.record.extra["scores"] and not candidate.cut_off
                for pool in questions.values()
                for candidate in pool
            ),
        }
        judgeable = [pool for pool in questions.values() if pool[0].can_be_judged]
        if judgeable:
            values = np.array([_values(pool, how) for pool in judgeable])
            best[method] = values[:, 0]
            methods[method] |= {name: asdict(Estimate.of(values[:, i])) for i, name in enumerate(CHOICES)}
    result: dict[str, Any] = {"aggregate": how, "methods": methods}
    result["by_question"] = {method: values.tolist() for method, values in best.items()}
    if len(best) == 2:
        searched, samples = best.values()
        result["difference"] = paired_difference(searched - samples)
    return result


def paired_difference(differences: np.ndarray) -> dict[str, float | None]:
    """{mean, low, high} of [questions] differences: the mean, and its 95% interval over questions by the normal
    distribution. Without an interval (None) if all are equal, as one alone is: then nothing is known of their spread.
    """
    mean = float(differences.mean())
    if np.ptp(differences) == 0:
        return {"mean": mean, "low": None, "high": None}
    half = Z * float(differences.std(ddof=1)) / len(differences) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


def shown_difference(difference: dict[str, Any]) -> str:
    """A result of `paired_difference` as text."""
    interval = "" if difference["low"] is None else f" [{difference['low']:+.3f}, {difference['high']:+.3f}]"
    return f"{difference['mean']:+.3f}{interval}"


def _values(pool: list[Candidate], how: str) -> list[float]:
    """The expected correctness of each of CHOICES, for the solutions of one question."""
    answers = [answer_of(candidate.record) for candidate in pool]
    correct, classes = judged(pool, answers), group_answers(answers)
    scores = aggregate_all([candidate.record.extra["scores"] for candidate in pool], how)
    n = len(pool)
    weights = [[log_weight(scores, how)], [np.zeros(n)]]
    votes = expected_votes([classes], [correct], weights, [n])[0][:, 0, 0]
    best = expected_best([scores], [correct], [n])[0, 0]
    return [best, *votes, max(correct), float(np.mean(correct))]


def table(result: dict[str, Any]) -> str:
    """The figures as lines of text."""
    rows = [["", *COLUMNS]]
    rows[0][4] += f" by {result['aggregate']}"
    for method, found in result["methods"].items():
        name = "plain samples" if method == "samples" else method
        row = [name, f"{found['questions']:,}", f"{found['solutions']:.1f}", f"{found['tokens']:,.0f}"]
        rows.append(row + [_shown(found[choice]) if choice in found else "-" for choice in CHOICES])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if "difference" in result:
        lines.append(f"best, search minus plain samples: {shown_difference(result['difference'])}")
    lines.append("solutions and tokens: of a question; in brackets: 95% intervals over questions")
    for field, reason in (
        ("cut_off", "cut off (by --budget-tokens, --max-new-tokens or the policy's context)"),
        ("unscored", "without a score (empty, or with a step beyond the model's context or that it cannot read)"),
    ):
        if count := sum(found[field] for found in result["methods"].values()):
            solutions = "1 solution" if count == 1 else f"{count:,} solutions"
            lines.append(f"{solutions} {reason}: kept, and never preferred")
    return "\n".join(lines)


def _shown(estimate: dict[str, Any]) -> str:
    interval = "" if estimate["low"] is None else f" [{estimate['low']:.3f}, {estimate['high']:.3f}]"
    return f"{estimate['mean']:.3f}{interval}"
