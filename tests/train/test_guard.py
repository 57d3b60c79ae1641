"""Which optimizer steps are left out, against the rule written out in plain Python."""

import math
import statistics

import pytest
import torch
from pqm_kernels import AdamW

from pqm_fast.train.guard import FEWEST, WINDOW, StepGuard
from pqm_fast.train.optim import update


def expected(norms, deviations):
    """The numbers of the steps that are left out."""
    taken, left_out = [], []
    for step, norm in enumerate(norms):
        window = taken[-WINDOW:]
        spike = (
            deviations > 0
            and len(window) >= FEWEST
            and norm > statistics.fmean(window) + deviations * statistics.pstdev(window)
        )
        if not math.isfinite(norm) or spike:
            left_out.append(step)
        else:
            taken.append(norm)
    return left_out


def decided(guard, norms, loss=1.0):
    return [i for i, norm in enumerate(norms) if guard.leave_out(torch.tensor(loss), torch.tensor(norm)).item()]


@pytest.mark.parametrize("deviations", [0.0, 3.0, 6.0])
def test_the_rule(device, deviations):
    """Spikes of every size, in a norm that falls, with NaN and infinity between."""
    generator = torch.Generator().manual_seed(1)
    norms = (torch.rand(500, generator=generator) * 0.2 + torch.linspace(2, 1, 500)).tolist()
    for step in (3, 40, 41, 170, 300, 301, 302, 450):
        norms[step] *= 1 + step / 40
    for step, value in ((0, math.nan), (33, math.inf), (200, math.nan), (400, -math.inf)):
        norms[step] = value
    found = decided(StepGuard(deviations, device), norms)
    assert found == expected(norms, deviations)
    assert {0, 33, 200, 400} <= set(found)
    assert (len(found) > 4) == (deviations > 0)


def test_a_nan_does_not_poison_the_window(device):
    """After hundreds of them, the same norms count as spikes as before."""
    guard = StepGuard(3.0, device)
    calm = [1.0 + 0.1 * (i % 3) for i in range(FEWEST)]
    assert decided(guard, calm) == []
    before = guard.norms.clone()
    assert len(decided(guard, [math.nan] * 300)) == 300
    assert decided(guard, [math.nan], loss=1.0) == decided(guard, [1.1], loss=math.nan) == [0]
    assert torch.equal(guard.norms, before)
    assert decided(guard, [1.2, 9.0, 1.2]) == [1]


@pytest.mark.parametrize("make", [lambda p: AdamW(p, lr=0.1), lambda p: torch.optim.AdamW(p, lr=0.1, fused=True)])
def test_an_update_that_is_left_out_changes_nothing(device, make):
    weight = torch.nn.Parameter(torch.ones(300, device=device))
    optimizer = make([weight])
    for left_out, gradient in ((0.0, 1.0), (1.0, math.nan), (0.0, 1.0)):
        before = weight.detach().clone()
        weight.grad = torch.full_like(weight, gradient)
        update(optimizer, torch.tensor(left_out, device=device))
        assert torch.equal(weight, before) == bool(left_out)
    assert weight.isfinite().all()


def test_an_optimizer_that_the_device_cannot_tell(device):
    weight = torch.nn.Parameter(torch.ones(3, device=device))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    weight.grad = torch.full_like(weight, math.nan)
    update(optimizer, torch.ones((), device=device))
    assert weight.tolist() == [1.0] * 3
    weight.grad = torch.ones_like(weight)
    update(optimizer, torch.zeros((), device=device))
    update(optimizer, None)
    assert weight.tolist() == [-1.0] * 3
