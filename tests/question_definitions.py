"""The definition of every loss that compares the solutions of a question, as in definitions.py.

A definition takes the solutions of one question. Weights count copies: a solution of weight 2 adds what two would.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from definitions import cost_of_winning, softplus
from pqm_kernels.losses import LossOptions
from torch import Tensor


@dataclass
class Solution:
    q: Tensor
    y: list[float]
    parents: list[int]
    step_weights: list[float]
    weight: float
    outcome: float | None
    """1 right, 0 wrong, None not known."""


def sibling(solutions: list[Solution], options: LossOptions) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for parent in sorted({parent for solution in solutions for parent in solution.parents}):
        correct, wrong = [], []
        for solution in solutions:
            for t, label in enumerate(solution.y):
                if solution.parents[t] == parent and solution.weight * solution.step_weights[t] > 0:
                    step = (solution.q[t], solution.weight * solution.step_weights[t])
                    (correct if label else wrong).append(step)
        if correct and wrong:
            q_wrong, weights_wrong = torch.stack([q for q, _ in wrong]), torch.tensor([w for _, w in wrong]).double()
            pairs = sum((w * weights_wrong * softplus(q_wrong - q)).sum() for q, w in correct)
            of_correct, of_wrong = sum(w for _, w in correct), sum(w for _, w in wrong)
            total = total + (of_correct + of_wrong) * pairs / (of_correct * of_wrong)
    return total


def group_terms(solutions: list[Solution], options: LossOptions, ordered: bool) -> Tensor:
    solutions = [solution for solution in solutions if solution.y and solution.weight > 0]
    negatives = [
        q + options.zeta + math.log(solution.weight)
        for solution in solutions
        for q, label in zip(solution.q, solution.y, strict=True)
        if not label
    ]
    negatives = torch.stack(negatives) if negatives else torch.zeros(0, dtype=torch.float64)
    question = torch.zeros(1, dtype=torch.float64)
    total, count, num_solutions = torch.zeros((), dtype=torch.float64), 0.0, 0.0
    for solution in solutions:
        earlier = []
        terms = [cost_of_winning(question[0], negatives)] if len(negatives) else []
        for q, label in zip(solution.q, solution.y, strict=True):
            if label:
                before = torch.stack(earlier) if ordered and earlier else question[:0]
                terms.append(cost_of_winning(q, torch.cat([question, before, negatives])))
                earlier.append(q)
        total = total + solution.weight * (torch.cat(terms).sum() if terms else 0.0)
        count += solution.weight * len(terms)
        num_solutions += solution.weight
    return total * num_solutions / count if count else total


def group_rank(solutions: list[Solution], options: LossOptions) -> Tensor:
    return group_terms(solutions, options, ordered=True)


def group_contrastive(solutions: list[Solution], options: LossOptions) -> Tensor:
    return group_terms(solutions, options, ordered=False)


def listwise_by(score: Callable[[Tensor], Tensor], solutions: list[Solution]) -> Tensor:
    solutions = [solution for solution in solutions if solution.y and solution.weight > 0]
    rivals = [score(one.q) + math.log(one.weight) for one in solutions if one.outcome == 0]
    total = torch.zeros((), dtype=torch.float64)
    for one in solutions:
        if one.outcome == 1 and rivals:
            total = total + one.weight * softplus(torch.logsumexp(torch.stack(rivals) - score(one.q), 0))
    return total


def listwise(solutions: list[Solution], options: LossOptions) -> Tensor:
    return listwise_by(lambda q: -softplus(-q).sum(), solutions)


def listwise_softmin(solutions: list[Solution], options: LossOptions) -> Tensor:
    def softmin(q: Tensor) -> Tensor:
        lowest = q.min().detach()  # so that the rest is small, and keeps its digits
        return lowest - options.temperature * torch.exp((lowest - q) / options.temperature).mean().log()

    return listwise_by(softmin, solutions)


def listwise_mean(solutions: list[Solution], options: LossOptions) -> Tensor:
    return listwise_by(lambda q: q.mean(), solutions)


QUESTION_DEFINITIONS: dict[str, Callable[[list[Solution], LossOptions], Tensor]] = {
    "sibling": sibling,
    "group-rank": group_rank,
    "group-contrastive": group_contrastive,
    "listwise": listwise,
    "listwise-softmin": listwise_softmin,
    "listwise-mean": listwise_mean,
}


def solutions_of(q: Tensor, case: dict[str, Tensor | None]) -> list[Solution]:
    """The trajectories of a case, with a weight of 1 where it has none, and with an outcome: that which is given, or
    whether no step is wrong."""
    y = case["labels"].tolist()
    solutions = []
    for b, (start, end) in enumerate(itertools.pairwise(case["cu_steps"].tolist())):

        def steps(name: str, default: float, start: int = start, end: int = end) -> list:
            return [default] * (end - start) if case.get(name) is None else case[name][start:end].tolist()

        outcome = float(all(y[start:end])) if case.get("outcomes") is None else case["outcomes"][b].item()
        solutions.append(
            Solution(
                q=q[start:end],
                y=y[start:end],
                parents=steps("parent", 0),
                step_weights=steps("step_weights", 1.0),
                weight=1.0 if case.get("trajectory_weights") is None else case["trajectory_weights"][b].item(),
                outcome=None if math.isnan(outcome) else float(outcome >= 0.5),
            )
        )
    return solutions


def question_definitions(q: Tensor, case: dict[str, Tensor | None], loss: str, options: LossOptions) -> Tensor:
    """[Q] float64 on the CPU: the definition of each question of a case; q of any dtype on any device."""
    q = q.cpu().double()
    solutions = solutions_of(q, case)
    of_questions = [solutions[start:end] for start, end in itertools.pairwise(case["cu_groups"].tolist())]
    return torch.stack([q.sum() * 0.0, *(QUESTION_DEFINITIONS[loss](one, options) for one in of_questions)])[1:]
