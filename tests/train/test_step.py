"""One optimizer step against the same step by hand."""

import math

import pytest
import tiny
import torch
from packed_models import gradients, make_model, trajectories

from pqm_fast.data.pack import pack
from pqm_fast.train.sharding import parts
from pqm_fast.train.step import Objective, clip_gradients, train_step


def batches(parts=3):
    made = list(enumerate(trajectories()))
    return [(pack(made[i::parts]), None) for i in range(parts)]


@pytest.mark.parametrize("loss", ["rank", "bce"])
@pytest.mark.parametrize("clip", [0.0, 0.05, 1e6])
def test_a_step_is_that_of_the_whole_batch(tmp_path, loss, clip):
    """Loss, norm, clipping and update. With plain gradient descent, the weights move by the clipped gradient."""
    model = make_model(tmp_path)
    [(whole, _)] = batches(1)
    out = model(whole, loss=loss, zeta=1.5)
    out.loss.backward()
    expected = gradients(model)
    model.zero_grad()
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in expected.values()))
    scale = min(1.0, clip / norm) if clip else 1.0
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    result = train_step(model, optimizer, batches(), Objective(loss, 1.5, clip)).wait()
    assert model.training
    assert result.loss == pytest.approx(float(out.loss.detach()), rel=1e-5)
    assert result.grad_norm == pytest.approx(norm, rel=1e-5)
    assert result.finite
    moved = torch.cat([(before[name] - p.detach()).flatten() for name, p in model.named_parameters()])
    gradient = torch.cat([expected[name].flatten() for name, _ in model.named_parameters()])
    assert tiny.relative_error(moved, 10.0 * scale * gradient) <= 1e-4
    assert all(p.grad is None for p in model.parameters())
    scores = {}
    for (batch, _), q in zip(batches(), result.scores, strict=True):
        scores |= dict(zip(batch.members, q.split(batch.cu_steps.diff().tolist()), strict=True))
    for member, q in zip(whole.members, out.q.split(whole.cu_steps.diff().tolist()), strict=True):
        assert (scores[member] - q).abs().max() <= 1e-5


def test_zeta_reaches_the_loss(tmp_path):
    model = make_model(tmp_path)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    losses = [train_step(model, optimizer, batches(), Objective("rank", zeta)).wait().loss for zeta in (0.0, 8.0)]
    assert losses[1] > losses[0] + 1


def test_the_norm_of_half_precision_is_not_rounded():
    """A norm in bfloat16 would be off by up to one part in 256."""
    module = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(n, dtype=torch.bfloat16)) for n in (3, 70, 1000)])
    generator = torch.Generator().manual_seed(0)
    for p in module:
        p.grad = torch.randn(p.shape, generator=generator).bfloat16()
    exact = math.sqrt(sum(float(p.grad.double().square().sum()) for p in module))
    norm = clip_gradients(parts(module), 1.0)
    assert norm.dtype == torch.float32
    assert float(norm) == pytest.approx(exact, rel=1e-6)
    clipped = math.sqrt(sum(float(p.grad.double().square().sum()) for p in module))
    assert clipped == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_what_is_not_finite_is_seen(tmp_path, bad):
    model = make_model(tmp_path)
    if bad == "loss":
        torch.nn.init.constant_(model.head.bias, math.inf)
    else:
        model.backbone.norm.weight.register_hook(lambda gradient: gradient * math.nan)
    result = train_step(model, torch.optim.SGD(model.parameters(), lr=0.0), batches(), Objective()).wait()
    assert math.isfinite(result.loss) == (bad == "gradient")
    assert not result.finite
