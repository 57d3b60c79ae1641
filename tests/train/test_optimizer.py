"""The optimizer that the options ask for, and its float32 masters of bfloat16 weights."""

import pytest
import torch
from safetensors.torch import load_file

from pqm_fast.train.loop import train
from pqm_fast.train.optim import make_optimizer, set_learning_rate
from pqm_fast.train.run import prepare
from pqm_fast.train.step import Objective, backward


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_optimizer(configure, dtype):
    """Only matrices decay."""
    run = prepare(configure(dtype=dtype, beta1=0.8, beta2=0.77, weight_decay=0.3, learning_rate=0.5))
    optimizer = make_optimizer(run.own, run.config)
    decayed, kept = optimizer.param_groups
    for group in (decayed, kept):
        assert (group["betas"], group["lr"]) == ((0.8, 0.77), 0.5)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in kept["params"]} == {1}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(run.model.parameters()))
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125] * 2


def test_small_updates_are_not_lost(configure):
    """Master weights are float32: at a learning rate of 1e-6 a bfloat16 weight near 1 would not move at all."""
    run = prepare(configure(dtype="bfloat16", learning_rate=1e-6, warmup_steps=0))
    optimizer = make_optimizer(run.own, run.config)
    norm = run.model.backbone.norm.weight
    before = norm.detach().clone()
    backward(run.model, [(run.training.pack(run.training.indices[:20]), None)], Objective())
    assert {p.dtype for p in run.model.backbone.parameters()} == {torch.bfloat16}
    optimizer.step()
    assert torch.equal(norm, before)
    assert optimizer.master(norm).dtype == torch.float32
    assert (optimizer.master(norm) != before).all()


def test_the_saved_dtype(configure, tmp_path):
    """The float32 checkpoint has the bits that bfloat16 weights lack, and rounds to the bfloat16 checkpoint."""
    options = {"dtype": "bfloat16", "max_steps": 3}
    for name in ("bfloat16", "float32"):
        train(configure(name, save_dtype=name, **options))
    half, full = (load_file(tmp_path / name / "model.safetensors") for name in ("bfloat16", "float32"))
    assert {t.dtype for t in full.values()} == {torch.float32}
    assert half.keys() == full.keys()
    for name in half:  # half a step of bfloat16; ties round away from zero in one and to even in the other
        assert (full[name] - half[name].float()).abs().le(full[name].abs() * 2**-8).all(), name
    finer = [name for name in full if not torch.equal(full[name].bfloat16().float(), full[name])]
    assert len(finer) > len(full) / 2
