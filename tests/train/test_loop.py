"""The loop: the same gradient however a step is divided, exact resumption, and learning from the data."""

import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from pqm_kernels import LOSSES
from safetensors.torch import load_file
from untimed import untimed

from pqm_fast.data.balance import one_sided
from pqm_fast.data.encode import Template
from pqm_fast.data.formats import ReadOptions
from pqm_fast.errors import PQMError
from pqm_fast.evaluate import calibrated_metrics, cross_thresholds
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.evaluation import evaluate
from pqm_fast.train.loop import train
from pqm_fast.train.metrics_file import read_metrics
from pqm_fast.train.optim import make_optimizer
from pqm_fast.train.run import prepare
from pqm_fast.train.schedule import learning_rate
from pqm_fast.train.step import Objective, backward


def gradients(run):
    gradient = {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}
    run.model.zero_grad()
    return gradient


@pytest.mark.parametrize("loss", LOSSES)
def test_accumulation_and_packing_do_not_change_the_gradient(configure, loss):
    """One batch of everything = batches of a few = one trajectory, or one question, at a time."""
    run = prepare(configure(loss=loss, micro_batch_tokens=4096))
    members, several = run.training.indices[:40], (8, 40)
    if run.config.whole_questions:  # four trajectories each
        members, several = run.training.units(run.training.indices, 4096).members[:40], (5, 10)
    loss_of, gradient_of = {}, {}
    for parts in (1, *several):
        batches = [(run.training.pack(m), None) for m in np.array_split(members, parts)]
        outputs = backward(run.model, batches, Objective(loss))
        loss_of[parts] = float(sum(out.loss for out in outputs))
        gradient_of[parts] = gradients(run)
    for parts in several:
        assert loss_of[parts] == pytest.approx(loss_of[1], rel=1e-5)
        for name, expected in gradient_of[1].items():
            if loss in tiny.WITHOUT_LEVEL and name.endswith("score.bias"):
                assert gradient_of[parts][name].abs() <= 1e-7
            else:
                assert tiny.relative_error(gradient_of[parts][name], expected) <= 1e-5, name


@pytest.mark.parametrize(("dtype", "dropout"), [("float32", 0.0), ("bfloat16", 0.1)])
def test_resume_is_exact_to_the_bit(configure, dtype, dropout, tmp_path):
    changes = {"attention_dropout": dropout, "num_hidden_layers": 2}
    model = str(tiny.model_folder(tmp_path / f"dropout{dropout}", **changes))
    options = {"save_every": 5, "keep_checkpoints": 3, "accumulation": 2, "epochs": 3, "dtype": dtype, "model": model}

    def make(out, **more):
        base = configure(out=out, **{k: v for k, v in (options | more).items() if k != "model"})
        return TrainConfig(**(vars(base) | {"model": model}))

    train(make("whole"))
    # the same run, cut off after step 8: the checkpoint of step 5 is the newest
    train(make("cut"))
    cut = tmp_path / "cut"
    cut_off(cut, 5)
    for name in ("metrics.json", "training.png"):
        (cut / name).unlink()
    lines = (cut / "metrics.jsonl").read_text().split("\n")
    (cut / "metrics.jsonl").write_text("\n".join(lines[:8]) + '\n{"kind": "train", "st')
    train(make("cut", resume=True))

    metrics = untimed(tmp_path / "whole" / "metrics.jsonl")
    assert len(metrics) == 13  # 12 steps and the evaluation at the end
    assert untimed(cut / "metrics.jsonl") == metrics
    whole, resumed = (StepQModel.from_pretrained(str(tmp_path / name)).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def cut_off(folder, step=None):
    """Makes a finished run look as if it had been killed before the end, with `step` as its newest checkpoint."""
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        if step is not None and int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    assert step is None or (folder / "checkpoints" / f"step-{step:07d}").exists()


@pytest.mark.parametrize("change", ["label", "record"])
def test_resuming_on_changed_data_is_refused(configure, tmp_path, change):
    config = configure(save_every=5)
    train(config)
    cut_off(tmp_path / "run")
    text = Path(config.data[0]).read_text()
    row = json.dumps({"id": "new", "prompt": "w3 w50", "completions": ["w5"], "labels": [True]}) + "\n"
    Path(config.data[0]).write_text(text + row if change == "record" else text.replace("true", "false", 1))
    with pytest.raises(PQMError, match="the run was started with other data: data "):
        train(configure(save_every=5, resume=True))


def test_a_run_from_before_an_option_existed_is_resumed(configure, tmp_path):
    train(configure(save_every=5, max_steps=8))
    cut_off(tmp_path / "run")
    stored = tmp_path / "run" / "config.yaml"
    newer = ("prefix_tree", "  field:", "  label_map:")
    lines = [line for line in stored.read_text().splitlines() if not line.startswith(newer)]
    assert len(lines) == len(stored.read_text().splitlines()) - len(newer)
    stored.write_text("\n".join(lines))
    with pytest.raises(PQMError, match=r"different: prefix_tree \(False then, True now\)"):
        train(configure(save_every=5, max_steps=8, resume=True, prefix_tree=True))
    train(configure(save_every=5, max_steps=8, resume=True))


@pytest.mark.parametrize(("gain", "later_gain"), [(2.0, 1.0), (1.0, 2.0)])
def test_a_resumed_run_keeps_its_dtype(configure, tmp_path, monkeypatch, gain, later_gain):
    """Whatever is measured when it is resumed."""
    model = str(tiny.model_folder(tmp_path / "wide", hidden_size=256, num_hidden_layers=1))
    options = {"model": model, "save_every": 2, "max_steps": 3, "recompute_layers": 0}
    name, other = ("bfloat16", "float32") if gain > later_gain else ("float32", "bfloat16")
    monkeypatch.setattr("pqm_fast.model.device.bfloat16_gain", lambda *_: gain)
    train(configure("whole", **options))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    cut_off(tmp_path / "cut", 2)
    monkeypatch.setattr("pqm_fast.model.device.bfloat16_gain", lambda *_: later_gain)
    assert any(note.startswith(f"dtype {other}: ") for note in prepare(configure("new", **options)).notes)
    resumed = prepare(configure("cut", **options, resume=True))
    assert resumed.model.classifier.dtype == getattr(torch, name)
    assert not any(note.startswith("dtype") for note in resumed.notes)
    train(configure("cut", **options, resume=True))
    whole, cut = ((tmp_path / out / "model.safetensors").read_bytes() for out in ("whole", "cut"))
    assert whole == cut


def test_a_complete_run_is_not_resumed(configure):
    train(configure(save_every=5, max_steps=6))
    with pytest.raises(PQMError, match="the run is complete"):
        train(configure(save_every=5, max_steps=6, resume=True))


def test_weights_are_saved_before_anything_that_may_fail(configure, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no metrics today")

    monkeypatch.setattr("pqm_fast.train.active_run.evaluate", fail)
    with pytest.raises(RuntimeError, match="no metrics today"):
        train(configure(max_steps=2, eval_fraction=0.2))
    assert StepQModel.from_pretrained(str(tmp_path / "run")).load_report.complete


def test_two_runs_of_one_seed_are_equal_and_of_two_differ(configure, tmp_path):
    losses = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(configure(out=name, seed=seed, max_steps=3))
        losses[name] = [row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")]
    assert losses["a"] == losses["b"]
    assert losses["a"] != losses["c"]


@pytest.fixture
def branching(tmp_path):
    """Options for data whose solutions share first steps, in prefix trees."""
    rng = np.random.default_rng(0)
    with open(tmp_path / "branching.jsonl", "w") as file:
        for question in range(12):
            stem = [tiny.text(rng, 4) for _ in range(6)]
            for i in range(10):
                shared = int(rng.integers(6))
                steps = stem[:shared] + [tiny.text(rng, 3) for _ in range(2)]
                labels = [True] * shared + [bool(b) for b in rng.integers(0, 2, 2)]
                row = {"id": f"{question}/{i}", "prompt": f"w{20 + question}", "completions": steps, "labels": labels}
                file.write(json.dumps(row) + "\n")
    return {"data": (str(tmp_path / "branching.jsonl"),), "prefix_tree": True}


def test_prefix_trees_train_from_fewer_tokens_and_say_so(configure, branching, tmp_path, capsys):
    options = vars(configure(epochs=2, max_steps=None, accumulation=2, micro_batch_tokens=256)) | branching
    config = TrainConfig(**options)
    run = prepare(config)
    lengths = run.training.dataset.lengths[run.training.indices]
    steps = list(run.order.steps(0, run.total_steps))
    seen = np.concatenate([m for step in steps for m in step])
    assert sorted(seen) == sorted([*run.training.indices] * 2)
    batches = [run.training.pack(m, 256) for step in steps for m in step]
    assert sum(b.num_tokens for b in batches) <= 2 * run.order.units.sizes.sum() < 0.7 * 2 * lengths.sum()
    [note] = [note for note in run.notes if note.startswith("prefix trees: ")]
    ratio = lengths.sum() / run.order.units.sizes.sum()
    assert note.endswith(f"instead of {lengths.sum():,}, {ratio:.2f} times fewer")

    train(config)
    assert note in capsys.readouterr().out
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert len(rows) == len(steps)
    assert all(row["loss"] > 0 for row in rows)


def test_evaluation_in_trees_equals_that_of_plain_packing(configure, branching):
    options = vars(configure(eval_fraction=0.5, micro_batch_tokens=128)) | branching
    trees, plain = (prepare(TrainConfig(**(options | {"prefix_tree": on}))) for on in (True, False))
    plain.model.load_state_dict(trees.model.state_dict())
    for limit in (None, 30):
        got, expected = evaluate(trees, trees.held_out, limit), evaluate(plain, plain.held_out, limit)
        assert got == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_resuming_in_trees_is_exact(configure, branching, tmp_path):
    def make(out, **more):
        return TrainConfig(**(vars(configure(out=out, save_every=5, keep_checkpoints=3, **more)) | branching))

    train(make("whole"))
    train(make("cut"))
    cut_off(tmp_path / "cut", 5)
    train(make("cut", resume=True))
    whole, resumed = (StepQModel.from_pretrained(str(tmp_path / name)).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.fixture
def rule(tmp_path):
    """Options for data with a rule that the model can learn: a step with w7 is wrong."""
    rng = np.random.default_rng(0)
    with open(tmp_path / "rule.jsonl", "w") as file:
        for i in range(600):
            labels = [bool(b) for b in rng.random(4) < 0.8]
            steps = [tiny.text(rng, 3).replace("w7 ", "w8 ") + (" w6" if good else " w7") for good in labels]
            file.write(
                json.dumps({"id": str(i), "prompt": f"w{9 + i % 60}", "completions": steps, "labels": labels}) + "\n"
            )
    options = {"max_steps": 80, "micro_batch_tokens": 512, "eval_fraction": 0.2, "learning_rate": 5e-3}
    return options | {"data": (str(tmp_path / "rule.jsonl"),)}


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns(configure, rule, loss):
    metrics = train(configure(loss=loss, **(rule | {"max_steps": 40, "learning_rate": 1e-2})))
    if loss == "orm":  # learns only from the last step: half the entropy of the outcomes (0.8^4 are right: 0.677)
        assert metrics["loss"] < 0.34
    else:
        assert metrics["pair_accuracy"] > 0.95


@pytest.mark.parametrize(
    ("options", "package"),
    [
        pytest.param({"dtype": "bfloat16", "accumulation": 2}, None, id="bfloat16"),
        pytest.param({"dtype": "bfloat16", "optimizer": "adamw-8bit"}, "torchao", id="8 bits"),
        pytest.param({"lora_rank": 16, "learning_rate": 2e-2}, "peft", id="adapters"),
        pytest.param({"recompute_layers": "all", "loader_workers": 1}, None, id="recomputed"),
    ],
)
def test_every_way_of_training_learns(configure, rule, options, package):
    if package:
        pytest.importorskip(package)
    assert train(configure(**(rule | options)))["pair_accuracy"] > 0.9


def test_run_folder(configure, tmp_path):
    metrics = train(configure(eval_every=5, save_every=4, keep_checkpoints=2))
    folder = tmp_path / "run"
    rows = read_metrics(folder / "metrics.jsonl")
    assert [r["step"] for r in rows if r["kind"] == "train"] == list(range(1, 13))
    assert [r["step"] for r in rows if r["kind"] == "eval"] == [5, 10, 12]
    named = {"loss", "step_accuracy", "grad_norm", "tokens_per_second", "eta_seconds", "learning_rate", "flat_floor"}
    assert named <= rows[0].keys()
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "best",
        "latest",
        "step-0000008",
        "step-0000012",
    ]
    assert (folder / "training.png").read_bytes()[:4] == b"\x89PNG"
    assert not [p for p in folder.rglob("*") if "tmp" in p.name]
    with pytest.raises(PQMError, match="already holds a run"):
        train(configure())


def test_a_question_is_trained_on_or_held_out(configure):
    run = prepare(configure(eval_fraction=0.3))
    question = run.training.dataset.question
    assert not set(question[run.training.indices]) & set(question[run.held_out.indices])
    assert len(set(question[run.held_out.indices])) == 9  # of 30
    assert len(run.training) + len(run.held_out) == 120
    again = prepare(configure(eval_fraction=0.3))
    assert np.array_equal(run.held_out.indices, again.held_out.indices)


def test_held_out_file_takes_its_questions_from_training(configure, tmp_path):
    other = tiny.write_data(tmp_path / "held.jsonl", count=20, questions=10, seed=1)
    run = prepare(configure(eval_data=(other,)))
    assert len(run.held_out) == 20
    assert len(run.training) == 80  # 10 of the 30 questions gone
    assert "40 training trajectories left out: their questions are in the held-out data" in run.notes


def test_evaluation_is_the_loss_and_metrics_of_all_held_out_trajectories(configure):
    run = prepare(configure(eval_fraction=0.5, loss="bce"))
    got = evaluate(run, run.held_out)
    batch = run.held_out.pack(run.held_out.indices)
    q = run.model.eval().scores(batch).double()
    y = batch.labels.double()
    expected = -(y * torch.sigmoid(q).log() + (1 - y) * torch.sigmoid(-q).log()).mean()
    assert got["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert got["step_accuracy"] == pytest.approx(float(((q >= 0) == (y > 0.5)).double().mean()))
    assert got["trajectories"] == len(run.held_out)
    ends = batch.cu_steps[1:-1].tolist()
    per_trajectory, labels = (np.split(column.float().numpy(), ends) for column in (q, y))
    questions = [str(run.held_out.dataset.question[i]) for i in batch.members]
    calibrated = calibrated_metrics(per_trajectory, labels, cross_thresholds(per_trajectory, labels, questions))
    assert None not in calibrated.values()
    assert {name: got[name] for name in calibrated} == pytest.approx(calibrated)


def test_soft_labels(configure, tmp_path):
    with open(tmp_path / "soft.jsonl", "w") as file:
        for i in range(20):
            row = {"id": f"s{i}", "prompt": f"w{3 + i}", "completions": ["w5", "w6"], "labels": [0.75, 0.25]}
            file.write(json.dumps(row) + "\n")

    def make(**options):
        return TrainConfig(**(vars(configure(**options)) | {"data": (str(tmp_path / "soft.jsonl"),)}))

    assert prepare(make(loss="bce")).training.trajectory(0).labels.tolist() == [0.75, 0.25]
    assert prepare(make(loss="rank", label_threshold=0.5)).training.trajectory(0).labels.tolist() == [1.0, 0.0]
    with pytest.raises(PQMError, match=r"record s0: label 0.75 is neither 0 nor 1.*40 such labels"):
        prepare(make(loss="rank"))


@pytest.mark.parametrize(
    ("labels", "threshold", "warning"),
    [
        ([1, 1], None, "all 80 step labels are correct: a model that gives every step the same score looks right"),
        ([0, 0], None, "all 80 step labels are wrong"),
        ([0.25, 0.75], None, None),
        ([0.25, 0.75], 0.2, "all 80 step labels are correct"),
        ([1, None], None, "all 40 step labels are correct"),
    ],
)
def test_a_warning_for_labels_that_are_all_the_same(configure, tmp_path, labels, threshold, warning):
    rows = [{"prompt": f"w{i}", "completions": ["w3", "w4"], "labels": labels} for i in range(3, 43)]
    data = tmp_path / "same.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = prepare(configure(data=(str(data),), loss="bce", label_threshold=threshold))
    warnings = [note for note in run.notes if note.startswith("warning: ")]
    assert len(warnings) == (warning is not None)
    assert warning is None or warnings[0].startswith(f"warning: {data}: {warning}")


def test_a_warning_for_a_class_below_one_percent():
    labels = np.array([0.0] + [1.0] * 100 + [np.nan] * 50, dtype=np.float32)
    assert one_sided(labels[1:]) is not None
    assert one_sided(labels).startswith("only 1 of 101 step labels are wrong: ")
    assert one_sided(1 - labels).startswith("only 1 of 101 step labels are correct: ")
    assert one_sided(labels[:100]) is None
    assert one_sided(labels[:0]) is None


def test_orm_leaves_out_trajectories_without_their_last_step(configure):
    whole = prepare(configure(loss="orm", eval_fraction=0))
    cut = prepare(configure(loss="orm", eval_fraction=0, max_length=12, read=ReadOptions(skip_bad=True)))
    lost = cut.training.dataset.steps_cut > 0
    assert 0 < lost.sum() < 120
    assert len(whole.training) == 120
    assert len(cut.training) == (~lost).sum()
    assert any("orm needs the last step" in note for note in cut.notes)


def test_optimizer_steps_continue_where_they_stopped(configure):
    run = prepare(configure(accumulation=2, max_steps=30))
    whole = [[m.tolist() for m in step] for step in run.order.steps(0, run.total_steps)]
    assert len(whole) == 30
    assert [[m.tolist() for m in step] for step in run.order.steps(17, run.total_steps)] == whole[17:]


@pytest.mark.parametrize("accumulation", [1, 3, 1000])
@pytest.mark.parametrize("epochs", [1, 3])
def test_each_pass_sees_each_trajectory_once(configure, accumulation, epochs):
    """No optimizer step mixes two passes; instead, the last step of a pass is shorter."""
    run = prepare(configure(max_steps=None, epochs=epochs, accumulation=accumulation))
    steps = list(run.order.steps(0, run.total_steps))
    assert all(len(step) <= accumulation for step in steps)
    seen = np.concatenate([m for step in steps for m in step]).reshape(epochs, -1)
    for epoch in seen:
        assert sorted(epoch) == sorted(run.training.indices)


def test_half_a_pass(configure):
    whole, half = (prepare(configure(max_steps=None, epochs=epochs)).total_steps for epochs in (1, 1.5))
    assert 0 <= half - 1.5 * whole < 1.5


def test_trajectories_that_lost_every_label_are_left_out_and_counted(configure, tmp_path):
    steps = ["w5 w6 w7", "w8 w9 w10"]
    rows = [
        {"id": "lost", "prompt": "w3", "completions": steps, "labels": [None, True]},
        {"id": "kept", "prompt": "w4", "completions": steps, "labels": [False, True]},
    ]
    (tmp_path / "cut.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TrainConfig(**(vars(configure(max_length=5, eval_fraction=0)) | {"data": (str(tmp_path / "cut.jsonl"),)}))
    run = prepare(config)
    assert [run.training.dataset.name(i) for i in range(len(run.training))] == ["kept"]
    assert "1 more were left out: all their labelled steps were cut off" in run.notes


def test_learning_rate_schedule(configure):
    config = configure(learning_rate=1.0, warmup_steps=4, final_lr=0.1)
    rates = [learning_rate(step, 104, config) for step in range(105)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[54] == pytest.approx(0.55)  # half way down from 1 to 0.1
    assert rates[104] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[4:]))


def test_only_matrices_decay(configure):
    run = prepare(configure(weight_decay=0.1))
    decayed, kept = make_optimizer(run.own, run.config).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in kept["params"]} == {1}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(run.model.parameters()))


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


def test_micro_batches_add_up_in_float32(configure):
    """With eight bfloat16 micro-batches, the gradient is as close to float32 as with one batch."""
    members = np.arange(64)

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


def test_the_next_step_is_launched_before_the_last_one_is_read(configure, monkeypatch):
    """The next step is queued before the host waits, so that a GPU is never idle."""
    from pqm_fast.train import loop, step

    events = []

    def train_step(*arguments, whole=step.train_step, **named):
        events.append("launch")
        return whole(*arguments, **named)

    def wait(self, whole=step.PendingResult.wait):
        events.append("read")
        return whole(self)

    monkeypatch.setattr(loop, "train_step", train_step)
    monkeypatch.setattr(step.PendingResult, "wait", wait)
    train(configure(max_steps=5, eval_fraction=0))
    assert events == ["launch", *["launch", "read"] * 4, "read"]


def test_a_loss_that_is_not_finite_stops_the_run(configure, tmp_path):
    model = StepQModel.from_pretrained(str(tiny.model_folder(tmp_path / "nan", num_hidden_layers=2)))
    from pqm_fast.model.recipe import Recipe

    with torch.no_grad():
        model.classifier.get_input_embeddings().weight[12] = float("nan")
    model.save(tmp_path / "nan", tiny.tokenizer(90), Recipe(Template()), torch.float32)
    options = {"max_steps": 50, "model": str(tmp_path / "nan")}
    with pytest.raises(PQMError, match=r"step \d+: loss nan.*not finite in \d+ trajectories: r\d+"):
        train(configure(**options))
    assert not (tmp_path / "run" / "config.json").exists()
    # no step has read it yet
    with pytest.raises(PQMError, match=r"after step 1, \S+embed_tokens.weight is not finite, so nothing was saved"):
        train(configure("saved", save_every=1, **options))
    assert not list((tmp_path / "saved").rglob("step-*"))


def test_without_held_out_data(configure, tmp_path):
    assert train(configure(eval_fraction=0, max_steps=2)) == {}
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert all(row["kind"] == "train" for row in read_metrics(tmp_path / "run" / "metrics.jsonl"))


def test_eight_bit_moments_resume_exactly(configure, tmp_path):
    pytest.importorskip("torchao")
    model = str(tiny.model_folder(tmp_path / "wide", num_hidden_layers=1, hidden_size=64))
    options = {"model": model, "optimizer": "adamw-8bit", "dtype": "bfloat16", "save_every": 5, "keep_checkpoints": 3}
    train(configure("whole", **options))
    train(configure("cut", **options))
    cut_off(tmp_path / "cut", 5)
    train(configure("cut", **options, resume=True))
    whole, resumed = (StepQModel.from_pretrained(str(tmp_path / name)).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    stored = load_file(next((tmp_path / "whole" / "checkpoints" / "step-0000010").glob("*.safetensors")))
    codes = [tensor for name, tensor in stored.items() if name.endswith(".exp_avg.codes")]
    assert [codes.dtype for codes in codes] == [torch.uint8] * 4  # q, k, v and o; the others are not whole blocks


@pytest.mark.parametrize(
    ("option", "module", "package"),
    [
        ({"lora_rank": 4}, "peft", "peft"),
        ({"optimizer": "adamw-8bit"}, "torchao.optim", "torchao"),
    ],
)
def test_a_missing_package_is_named(configure, monkeypatch, option, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PQMError, match=f"needs {package}; install it with `pip install {package}`"):
        train(configure(**option))
