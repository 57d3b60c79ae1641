"""Inputs of `step_loss`, what it makes of them, and what it should: the definition in float64."""

import itertools

import torch
from definitions import trajectory_definitions
from pqm_kernels import LOSSES, step_loss
from pqm_kernels.losses import LossOptions, split_units
from question_definitions import question_definitions

INPUTS = ("hidden", "weight", "bias", "norm_weight")
BACKENDS = ("eager", "triton")
LENGTHS = (3, 17, 1, 0)
OF_TRAJECTORIES = [name for name, loss in LOSSES.items() if loss.unit == "trajectory"]
OF_QUESTIONS = [name for name, loss in LOSSES.items() if loss.unit == "question"]
# Around the parts of 64 steps that long trajectories are scored in; the sixth begins in the middle of one.
UNEVEN = (3, 0, 300, 64, 65, 1, 128, 129, 63)


def cu_steps_of(lengths, device):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


def cu_groups_of(num_trajectories):
    """Questions with 3, 2, 0, 1, 3, ... solutions, of which the last has those that are left."""
    ends = itertools.accumulate(itertools.cycle((3, 2, 0, 1)), initial=0)
    return torch.tensor([*itertools.takewhile(lambda end: end < num_trajectories, ends), num_trajectories]).int()


def questions_of(lengths, seed=0):
    """What describes the questions of a batch: few prefixes, so that steps have siblings, and any outcome."""
    generator = torch.Generator().manual_seed(seed + 1000)
    outcomes = torch.tensor([0.0, 0.3, 1.0, torch.nan])
    return {
        "cu_groups": cu_groups_of(len(lengths)),
        "parent": torch.randint(3, (sum(lengths),), generator=generator) - 1,
        "outcomes": outcomes[(torch.randint(4, (1,), generator=generator) + torch.arange(len(lengths)) * 3) % 4],
    }


def make_case(device, *, rows=40, width=24, lengths=LENGTHS, dtype=torch.float32, seed=0, norm=True, bias=True):
    """The tensors of a call: any row of hidden may be read by several steps or none, labels are 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    steps = sum(lengths)
    case = {
        "hidden": torch.randn(rows, width, generator=generator).to(dtype),
        "step_index": torch.randint(rows, (steps,), generator=generator),
        "labels": torch.randint(0, 2, (steps,), generator=generator).float(),
        "cu_steps": cu_steps_of(lengths, "cpu"),
        "weight": torch.randn(width, generator=generator) * 2 / width**0.5,
        "bias": torch.randn(1, generator=generator) if bias else None,
        "norm_weight": torch.rand(width, generator=generator) + 0.5 if norm else None,
    }
    case |= questions_of(lengths, seed)
    return {name: None if tensor is None else tensor.to(device) for name, tensor in case.items()}


def exact_case(q, labels, lengths, device):
    """A case whose scores are `q` [S] to the bit, and whose gradient by hidden is that by the scores."""
    steps = {"step_index": torch.arange(len(q)), "cu_steps": cu_steps_of(lengths, "cpu"), "labels": labels}
    case = {"hidden": q.float()[:, None], "weight": torch.ones(1), **steps, **questions_of(lengths)}
    return {name: tensor.to(device) for name, tensor in case.items()}


def run(case, *, upstream=1.0, needs=INPUTS, dtype=None, **options):
    """Loss, scores and gradients of a call by name, all in float64 on the CPU; `dtype` is that of INPUTS."""
    case = {
        name: tensor.detach().to(dtype or tensor.dtype) if name in INPUTS and tensor is not None else tensor
        for name, tensor in case.items()
    }
    leaves = {name: case[name].requires_grad_() for name in needs if case.get(name) is not None}
    out = step_loss(**case, **options)
    # The upstream gradient is a view into a larger tensor.
    upstream = torch.tensor([torch.nan, upstream], dtype=out.loss.dtype, device=out.loss.device)[1]
    gradients = torch.autograd.grad(out.loss, leaves.values(), upstream)
    results = {"loss": out.loss, "q": out.q, **dict(zip(leaves, gradients, strict=True))}
    return {name: tensor.detach().double().cpu() for name, tensor in results.items()}


def batch_loss(q, case, loss, zeta=4.0, *, compare=None, compare_weight=1.0, temperature=1.0, noise=(0.1, 0.1)):
    """The sum of the losses by their definitions, 0-dim."""
    of_trajectory, of_question = split_units(loss, compare)
    total = q.sum() * 0.0
    if of_trajectory is not None:
        weights = {name: case.get(name) for name in ("step_weights", "trajectory_weights")}
        total = (
            total
            + trajectory_definitions(
                q, case["labels"], case["cu_steps"], of_trajectory, zeta, noise=noise, **weights
            ).sum()
        )
    if of_question is not None:
        factor = 1.0 if of_trajectory is None else compare_weight
        options = LossOptions(zeta, temperature, *noise)
        total = total + factor * question_definitions(q, case, of_question, options).sum()
    return total


def define(case, *, loss="rank", norm_eps=1e-6, normalizer=None, upstream=1.0, total=batch_loss, **options):
    """What `run` should return, from float64 scores and `definitions.py`, or another `total` of their losses.

    Beside it, under "terms", by name the largest sum of absolute terms that an element is made of: in float32 an
    element that is what such terms leave when they cancel is known to their precision, not its own.
    """
    case = {name: None if tensor is None else tensor.detach().cpu() for name, tensor in case.items()}
    leaves = {name: case[name].double().requires_grad_() for name in INPUTS if case.get(name) is not None}
    step_index, cu_steps = case["step_index"].long(), case["cu_steps"]
    x = leaves["hidden"][step_index]
    rms = (x.square().mean(1, keepdim=True) + norm_eps).sqrt() if "norm_weight" in leaves else torch.ones(1, 1)
    x = x / rms
    norm_weight = leaves.get("norm_weight", torch.ones(1))
    q = (x * norm_weight * leaves["weight"]).sum(1) + leaves.get("bias", torch.zeros(1))
    whole = len(q) if LOSSES[loss].normalised_by == "steps" else len(cu_steps) - 1
    value = total(q, case, loss, **options) / (normalizer or max(whole, 1))
    *gradients, dq = torch.autograd.grad(
        value * upstream, [*leaves.values(), q], allow_unused=True, materialize_grads=True
    )
    results = {"loss": value, "q": q, **dict(zip(leaves, gradients, strict=True))}
    results = {name: tensor.detach() for name, tensor in results.items()}
    with torch.no_grad():
        dq = dq.abs()[:, None]
        head = (norm_weight * leaves["weight"]).abs()
        of_row = torch.zeros(len(case["hidden"]), 1).double().index_add(0, step_index, dq / rms * head.max())
        terms = {
            "q": (x.abs() * head).sum(1),
            "hidden": of_row,
            "weight": (dq * (x * norm_weight).abs()).sum(0),
            "bias": dq.sum(0),
            "norm_weight": (dq * (x * leaves["weight"]).abs()).sum(0),
        }
    results["terms"] = {name: float(term.max()) if term.numel() else 0.0 for name, term in terms.items()}
    return results


def errors(found, expected, share=0.1):
    """Largest error of each result, relative to its largest element, or to a share of its terms if that is larger."""
    terms = expected.get("terms", {})
    result = {}
    for name, value in found.items():
        assert value.shape == expected[name].shape
        if value.numel():
            scale = max(float(expected[name].abs().max()), terms.get(name, 0.0) * share, 1e-30)
            result[name] = float((value - expected[name]).abs().max()) / scale
    return result


def assert_close(found, expected, tolerance=1e-5, share=0.1):
    found_errors = errors(found, expected, share)
    wrong = {name: error for name, error in found_errors.items() if not error <= tolerance}
    assert not wrong, wrong
