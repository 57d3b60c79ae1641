"""The definition of every loss, evaluated term by term in float64: what all other implementations are tested against.

A definition takes the scores q [L] (float64, with or without a gradient), the labels as a list of L numbers and zeta,
and returns a 0-dim tensor; autograd through it is the definition of the gradient. Each term is positive and is written
as a softplus of a difference, never as a difference of logarithms: it keeps 12 digits for scores of +-1e4, and where
it is as small as e^-40.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x)"""
    return torch.logaddexp(x, torch.zeros_like(x))


def sigmoid(x: Tensor) -> Tensor:
    return torch.exp(-softplus(-x))


def cost_of_winning(candidate: Tensor, rivals: Tensor) -> Tensor:
    """log(e^candidate + sum of e^rival) - candidate, as [1]"""
    return softplus(torch.logsumexp(rivals - candidate, 0, keepdim=True))


def split(q: Tensor, y: list[float]) -> tuple[Tensor, Tensor]:
    """The scores of the correct and of the wrong steps, in order."""
    correct = [t for t, label in enumerate(y) if label]
    wrong = [t for t, label in enumerate(y) if not label]
    return q[correct], q[wrong]


def mean(terms: list[Tensor], q: Tensor) -> Tensor:
    """Of 1-d tensors of terms; no terms, which means no steps, give 0."""
    return torch.cat(terms).mean() if terms else q.sum()


def rank_terms(correct: Tensor, negatives: Tensor) -> list[Tensor]:
    """Eq. 10, with N the sum of e^negative."""
    question = correct.new_zeros(1)
    terms = [cost_of_winning(q_c, torch.cat([question, correct[:i], negatives])) for i, q_c in enumerate(correct)]
    return terms + ([cost_of_winning(question[0], negatives)] if len(negatives) else [])


def rank(q: Tensor, y: list[float], zeta: float) -> Tensor:
    correct, wrong = split(q, y)
    return mean(rank_terms(correct, wrong + zeta), q)


def rank_theory(q: Tensor, y: list[float], zeta: float) -> Tensor:
    correct, wrong = split(q, y)
    ordered = [cost_of_winning(q_w, wrong[i + 1 :]) for i, q_w in enumerate(wrong[:-1])]
    return mean(rank_terms(correct, wrong + zeta) + ordered, q)


def rank_first_error(q: Tensor, y: list[float], zeta: float) -> Tensor:
    correct, wrong = split(q, y)
    return mean(rank_terms(correct, wrong[:1]), q)


def pairwise(q: Tensor, y: list[float], zeta: float) -> Tensor:
    correct, wrong = split(q, y)
    pairs = []
    for i, q_c in enumerate(correct):
        pairs += [softplus(correct[:i] - q_c), softplus(-q_c)[None], softplus(wrong + zeta - q_c)]
    for i, q_w in enumerate(wrong):
        pairs += [softplus(q_w + zeta)[None], softplus(wrong[i + 1 :] - q_w)]
    return mean(pairs, q)


def crm(q: Tensor, y: list[float], zeta: float) -> Tensor:
    hazards = softplus(-q)
    total = hazards.sum()
    if all(y):
        return total
    if total < 1e-250:  # all scores are so large that log(1 - e^-H) is log H, and a hazard e^-q
        failed = -torch.logsumexp(-q, 0)
    elif total < 0.7:
        failed = -torch.log(-torch.expm1(-total))
    else:
        failed = -torch.log1p(-torch.exp(-total))
    z = y.index(0)
    return failed + softplus(q[z]) + hazards[:z].sum()


def cross_entropy(score: Tensor, label: float) -> Tensor:
    return label * softplus(-score) + (1 - label) * softplus(score)


def bce(q: Tensor, y: list[float], zeta: float) -> Tensor:
    return sum((cross_entropy(score, label) for score, label in zip(q, y, strict=True)), q.new_zeros(()))


def mse(q: Tensor, y: list[float], zeta: float) -> Tensor:
    errors = [(1 - label) * sigmoid(score) - label * sigmoid(-score) for score, label in zip(q, y, strict=True)]
    return sum((error**2 for error in errors), q.new_zeros(()))


def orm(q: Tensor, y: list[float], zeta: float) -> Tensor:
    return cross_entropy(q[-1], float(all(y))) if y else q.sum()


DEFINITIONS: dict[str, Callable[[Tensor, list[float], float], Tensor]] = {
    "rank": rank,
    "rank-theory": rank_theory,
    "rank-first-error": rank_first_error,
    "pairwise": pairwise,
    "crm": crm,
    "bce": bce,
    "mse": mse,
    "orm": orm,
}


def trajectory_definitions(q: Tensor, labels: Tensor, cu_steps: Tensor, loss: str, zeta: float) -> Tensor:
    """[B] float64 on the CPU: the definition of each trajectory of a batch; q of any dtype on any device."""
    q, y = q.cpu().double(), labels.tolist()
    values = [DEFINITIONS[loss](q[a:b], y[a:b], zeta) for a, b in itertools.pairwise(cu_steps.tolist())]
    return torch.stack([q.sum(), *values])[1:]  # with a gradient, 0, even if there is nothing to sum


def batch_loss(q: Tensor, labels: Tensor, cu_steps: Tensor, loss: str, zeta: float) -> Tensor:
    """The sum of `trajectory_definitions`, 0-dim."""
    return trajectory_definitions(q, labels, cu_steps, loss, zeta).sum()
