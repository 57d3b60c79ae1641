"""One optimizer step against the same step by hand: the gradient is the same however the step is divided."""

import math

import numpy as np
import pytest
import tiny
import torch
from packed_models import gradients, make_model, trajectories
from pqm_kernels import LOSSES

from pqm_fast.data.pack import pack
from pqm_fast.train.loop import train
from pqm_fast.train.metrics_file import read_metrics
from pqm_fast.train.run import prepare
from pqm_fast.train.sharding import parts
from pqm_fast.train.step import Objective, backward, clip_gradients, train_step


def batches(parts=3):
    made = list(enumerate(trajectories()))
    return [(pack(made[i::parts]), None) for i in range(parts)]


@pytest.mark.parametrize(("loss", "clip"), [("rank", 0.0), ("bce", 0.05), ("rank", 1e6)])
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


@pytest.mark.parametrize("loss", LOSSES)
def test_accumulation_and_packing_do_not_change_the_gradient(configure, loss):
    """One batch of everything = batches of a few = one trajectory, or one question, at a time."""
    run = prepare(configure(loss=loss, micro_batch_tokens=4096))
    members, several = run.training.indices[:16], (3, 16)
    if run.config.whole_questions:  # four trajectories each
        members, several = run.training.units(run.training.indices, 4096).members[:16], (2, 4)
    loss_of, gradient_of = {}, {}
    for count in (1, *several):
        batches = [(run.training.pack(m), None) for m in np.array_split(members, count)]
        outputs = backward(run.model, batches, Objective(loss))
        loss_of[count] = float(sum(out.loss for out in outputs))
        gradient_of[count] = gradients(run.model)
        run.model.zero_grad()
    for count in several:
        assert loss_of[count] == pytest.approx(loss_of[1], rel=1e-5)
        for name, expected in gradient_of[1].items():
            if loss in tiny.WITHOUT_LEVEL and name.endswith("score.bias"):
                assert gradient_of[count][name].abs() <= 1e-7
            else:
                assert tiny.relative_error(gradient_of[count][name], expected) <= 1e-5, name


@pytest.mark.parametrize("loss", ["rank", "bce"])
def test_the_loop_normalises_over_all_micro_batches_of_a_step(configure, tmp_path, loss):
    """By trajectories or by steps: the first step of a run has the loss and the norm of one batch of all its data."""
    config = configure(loss=loss, accumulation=3, max_steps=1, eval_fraction=0, dtype="float32")
    run = prepare(config)
    [step] = run.order.steps(0, 1)
    assert len(step) == 3
    whole = run.training.pack(np.concatenate(step))
    [out] = backward(run.model, [(whole, None)], Objective(loss))
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients(run.model).values()))
    train(config)
    [row] = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert row["loss"] == pytest.approx(float(out.loss), rel=1e-5)
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_micro_batches_add_up_in_float32(configure):
    """With eight bfloat16 micro-batches, the gradient is as close to float32 as with one batch."""
    members = np.arange(32)

    def gradient(dtype, accumulation):
        run = prepare(configure(dtype=dtype, accumulation=accumulation, micro_batch_tokens=4096))
        batches = [(run.training.pack(m), None) for m in np.array_split(members, accumulation)]
        backward(run.model, batches, Objective())
        by_name = {name: p.grad for name, p in run.model.backbone.named_parameters()}
        if dtype == "bfloat16":
            assert {g.dtype for g in by_name.values()} == {torch.float32 if accumulation > 1 else torch.bfloat16}
        return torch.cat([g.float().flatten() for g in by_name.values()])

    exact = gradient("float32", 1)
    one, eight = (tiny.relative_error(gradient("bfloat16", n), exact) for n in (1, 8))
    assert 0 < eight <= 1.2 * one
