"""The definition of every loss of a trajectory, evaluated term by term in float64: what all other implementations are
tested against. question_definitions.py has those of the losses that compare the solutions of a question.

A definition takes the scores q [L] (float64, with or without a gradient), the labels as a list of L numbers and zeta;
those that read them also take `noise` or the `weights` of the steps. It returns a 0-dim tensor; autograd through it is
the definition of the gradient. Each term is positive and is written as a softplus of a difference, never as a
difference of logarithms: it keeps 12 digits for scores of +-1e4, and where it is as small as e^-40.
"""

import itertools
import math
from collections.abc import Callable

import torch
from pqm_kernels import LOSSES
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


def weighted_sum(terms: list[Tensor], weights: list[float] | None, q: Tensor) -> Tensor:
    """Of the terms of the first steps."""
    weights = [1.0] * len(terms) if weights is None else weights
    return sum((weight * term for weight, term in zip(weights, terms, strict=False)), q.new_zeros(()))


def bce(q: Tensor, y: list[float], zeta: float, weights: list[float] | None = None) -> Tensor:
    return weighted_sum([cross_entropy(score, label) for score, label in zip(q, y, strict=True)], weights, q)


def mse(q: Tensor, y: list[float], zeta: float, weights: list[float] | None = None) -> Tensor:
    errors = [(1 - label) * sigmoid(score) - label * sigmoid(-score) for score, label in zip(q, y, strict=True)]
    return weighted_sum([error**2 for error in errors], weights, q)


def orm(q: Tensor, y: list[float], zeta: float) -> Tensor:
    return cross_entropy(q[-1], float(all(y))) if y else q.sum()


def first_error(q: Tensor, y: list[float], zeta: float, weights: list[float] | None = None) -> Tensor:
    read = y[: y.index(0) + 1] if 0 in y else y
    return weighted_sum([cross_entropy(score, label) for score, label in zip(q, read, strict=False)], weights, q)


def first_error_noisy(
    q: Tensor, y: list[float], zeta: float, noise: tuple[float, float] = (0.1, 0.1), least: float = 1e-12
) -> Tensor:
    """-log of the sum over the places z of the first error, the last of which is "none", of the probability of z and of
    the labels given z. No factor of a label is below `least`."""
    paths = []
    for z in range(len(y) + 1):
        log_probability = -softplus(-q[:z]).sum() - softplus(q[z : z + 1]).sum()
        for t, label in enumerate(y):
            rate_of_one = 1 - noise[0] if t < z else noise[1]
            emission = label * rate_of_one + (1 - label) * (1 - rate_of_one)
            log_probability = log_probability + math.log(max(emission, least))
        paths.append(log_probability)
    return -torch.logsumexp(torch.stack(paths), 0)


DEFINITIONS: dict[str, Callable[..., Tensor]] = {
    "rank": rank,
    "rank-theory": rank_theory,
    "rank-first-error": rank_first_error,
    "pairwise": pairwise,
    "crm": crm,
    "bce": bce,
    "mse": mse,
    "orm": orm,
    "first-error": first_error,
    "first-error-noisy": first_error_noisy,
}


def trajectory_definitions(
    q: Tensor, labels: Tensor, cu_steps: Tensor, loss: str, zeta: float, *, noise: tuple[float, float] = (0.1, 0.1),
    step_weights: Tensor | None = None, trajectory_weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """[B] float64 on the CPU: the definition of each trajectory of a batch; q of any dtype on any device."""
    q, y = q.cpu().double(), labels.tolist()
    values = [q.sum()]  # with a gradient, 0, even if there is nothing to sum
    for b, (start, end) in enumerate(itertools.pairwise(cu_steps.tolist())):
        options = {"noise": noise} if LOSSES[loss].uses_noise else {}
        if step_weights is not None:
            options["weights"] = step_weights[start:end].tolist()
        weight = 1.0 if trajectory_weights is None else trajectory_weights[b].item()
        values.append(weight * DEFINITIONS[loss](q[start:end], y[start:end], zeta, **options))
    return torch.stack(values)[1:]
