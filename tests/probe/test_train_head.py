"""The training of one head: against the definitions in float64, and its batches against the records."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pqm_kernels import LOSSES, trajectory_losses
from small_probes import config_in

from pqm_fast.common.combination import parse_loss
from pqm_fast.probe.frozen import FrozenDecoder
from pqm_fast.probe.heads import Head, HeadSpec, choose, grid
from pqm_fast.probe.splits import Sides
from pqm_fast.probe.train_head import scale_of
from pqm_fast.probe.trainer import HeadTrainer


@pytest.fixture
def trainer(tmp_path):
    config = config_in(tmp_path, losses=tuple(LOSSES), batch_steps=100)
    decoder = FrozenDecoder(config, notes := [])
    probed = decoder.probed(config.data, outcomes=True)
    return HeadTrainer(config, decoder, Sides(probed, probed), notes)


def normed(trainer, layer):
    """The normed states of every step of the data set [S, D] in float64."""
    probed = trainer.sides.training
    x = probed.rows(layer)[torch.from_numpy(probed.row_of_step.copy())].double()
    weight, eps = trainer.decoder.norm
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def test_batches_hold_whole_questions_and_their_own_rows(trainer):
    training, held_out = trainer.split(parse_loss("bce+sibling"))
    rows = {r["id"]: r for r in map(json.loads, Path(trainer.config.data[0]).read_text().splitlines())}
    dataset, seen = training.dataset, []
    layout = trainer.layouts(parse_loss("bce+sibling"), 0)[0]
    assert len(layout.batches) > 2
    states = layout.take(trainer.sides.training.rows(3), torch.device("cpu"))
    everything = trainer.sides.training.rows(3)[torch.from_numpy(trainer.sides.training.row_of_step.copy())]
    ends = dataset.columns["steps_end"]
    for batch in layout.batches:
        questions = dataset.question[list(batch.members)]
        seen += questions.tolist()
        assert len(np.unique(questions)) == len(batch.cu_groups) - 1
        assert len(batch.labels) <= 100 or len(np.unique(questions)) == 1
        flat = np.concatenate([np.arange(ends[i - 1] if i else 0, ends[i]) for i in batch.members])
        assert torch.equal(states[batch.rows][batch.step_index], everything[torch.from_numpy(flat)])
        assert batch.labels.tolist() == [y for i in batch.members for y in rows[dataset.name(i)]["labels"]]
    # every question of the training side, in one batch
    assert len(set(seen)) == training.num_questions
    assert sorted(i for b in layout.batches for i in b.members) == sorted(training.indices.tolist())
    assert not set(dataset.question[held_out.indices].tolist()) & set(seen)


@pytest.mark.parametrize("loss", ["rank", "bce", "mse", "pairwise"])
def test_training_follows_the_definition(trainer, loss):
    """AdamW on standardised states, batch after batch, in float64 and plain PyTorch."""
    spec = HeadSpec(3, loss, 2.0 if LOSSES[loss].uses_zeta else None, None, 0.03, 7)
    head = trainer.train(spec)
    losses = [row[1] for row in head.curve]
    assert head.best_epoch == 1 + losses.index(min(losses))
    assert head.epochs == min(4, head.best_epoch + 2)  # a patience of 2

    x = normed(trainer, 3)
    probed, (training, held_out) = trainer.sides.training, trainer.split(parse_loss(loss))
    ends = probed.dataset.columns["steps_end"]
    labels = torch.from_numpy(probed.dataset.columns["labels"].astype(np.float64))
    used = np.unique(
        probed.row_of_step[np.concatenate([np.arange(ends[i - 1] if i else 0, ends[i]) for i in training.indices])]
    )
    first = {int(row): i for i, row in reversed(list(enumerate(probed.row_of_step)))}
    distinct = x[[first[int(row)] for row in used]]
    mean, deviation = distinct.mean(0), distinct.std(0, correction=0)
    z = (x - mean) / deviation

    def loss_of(w, b, members):
        flat = torch.from_numpy(np.concatenate([np.arange(ends[i - 1] if i else 0, ends[i]) for i in members]))
        counts = [int(ends[i] - (ends[i - 1] if i else 0)) for i in members]
        cu_steps = torch.tensor(np.cumsum([0, *counts]))
        own = trajectory_losses(z[flat] @ w + b, labels[flat], cu_steps, loss, 2.0)
        return own.sum() / (len(flat) if LOSSES[loss].normalised_by == "steps" else len(members))

    w, b = (
        torch.zeros(32, dtype=torch.float64, requires_grad=True),
        torch.zeros(1, dtype=torch.float64, requires_grad=True),
    )
    optimizer = torch.optim.AdamW([w, b], lr=0.03, weight_decay=0.0)
    random = np.random.default_rng([7, 4])
    batches = trainer.layouts(parse_loss(loss), 7)[0].batches
    for epoch in range(head.epochs):
        for i in random.permutation(len(batches)):
            optimizer.zero_grad()
            loss_of(w, b, batches[i].members).backward()
            optimizer.step()
        with torch.no_grad():
            expected = loss_of(w, b, held_out.indices.tolist()).item()
        assert head.curve[epoch][1] == pytest.approx(expected, rel=1e-4)
        if epoch + 1 == head.best_epoch:
            best = w.detach() / deviation, (b - w @ (mean / deviation)).item()
    got = torch.from_numpy(head.weight).double()
    assert (got - best[0]).norm() <= 1e-3 * best[0].norm()
    q, want = normed(trainer, 3) @ got + head.bias, normed(trainer, 3) @ best[0] + best[1]
    assert (q - want).abs().max() <= 1e-3 * want.abs().max()


def test_every_loss_trains(trainer):
    for loss in LOSSES:
        head = trainer.train(HeadSpec(1, loss, 4.0 if LOSSES[loss].uses_zeta else None, None, 0.01, 0))
        assert np.isfinite(head.weight).all()
        assert np.abs(head.weight).max() > 0, loss
        assert head.held_out["steps"] > 0
        assert head.curve[head.best_epoch - 1][1] == head.held_out["loss"]


def test_a_loss_that_is_not_finite_ends_the_head(trainer):
    head = trainer.train(HeadSpec(1, "mse", None, None, float("inf"), 0))
    assert (head.best_epoch, head.epochs, head.held_out) == (0, 1, {})


@pytest.mark.parametrize("norm", [False, True])
def test_scale(norm):
    x = torch.randn(20000, 5) * torch.tensor([1.0, 10.0, 0.1, 3.0, 0.0]) + torch.tensor([0.0, 5.0, 1.0, -2.0, 0.0])
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0])
    y = x.double()
    if norm:
        y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    scale = scale_of(x, (weight, 1e-6) if norm else None)
    deviation = y.std(0, correction=0)
    assert torch.allclose(scale.mean.double(), y.mean(0), atol=1e-5)
    assert torch.allclose(1 / scale.inverse[:4].double(), deviation[:4], rtol=1e-4)
    assert 1 / scale.inverse[4] == pytest.approx(1e-4 * deviation.max().item(), rel=1e-3)  # never changes


def test_grid_has_each_head_once(tmp_path):
    config = config_in(
        tmp_path, losses=("rank", "bce", "bce+sibling", "rank"), zetas=(2.0, 4.0), compare_weights=(1.0, 3.0),
        learning_rates=(0.1, 0.01), seeds=(0, 1),
    )  # fmt: skip
    specs = grid(config, (1, 3))
    assert len(specs) == len({spec.name for spec in specs}) == 2 * (2 + 1 + 2) * 2 * 2
    assert {spec.zeta for spec in specs if spec.loss == "bce"} == {None}
    assert {spec.compare_weight for spec in specs if spec.loss == "bce+sibling"} == {1.0, 3.0}
    close = grid(config_in(tmp_path, learning_rates=(0.0123456, 0.01234561)), (1,))
    assert len({spec.name for spec in close}) == len(close) == 4


def test_choose_takes_the_setting_with_the_best_mean_and_its_best_seed():
    def head(rate, seed, auroc):
        spec = HeadSpec(1, "bce", None, None, rate, seed)
        return Head(spec, np.zeros(2, np.float32), 0.0, 1, 1, [], {} if auroc is None else {"auroc": auroc}, 0.1)

    heads = [
        head(0.1, 0, 0.9),
        head(0.1, 1, 0.5),
        head(0.2, 0, 0.75),
        head(0.2, 1, 0.8),
        head(0.3, 0, 0.99),
        head(0.3, 1, None),
    ]
    assert choose(heads, "auroc") is heads[3]
    assert choose([head(0.1, 0, None)], "auroc") is None
