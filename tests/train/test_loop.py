"""The loop as a whole: what it writes, in which order, and that a model learns from the data."""

import json
import sys

import numpy as np
import pytest
import tiny
import torch
from untimed import untimed

from pqm_fast.data.encode import Template
from pqm_fast.errors import PQMError
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.train import curve, loop, step
from pqm_fast.train.loop import train
from pqm_fast.train.metrics_file import read_metrics
from pqm_fast.train.run import prepare


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


def test_prefix_trees_train_from_fewer_tokens_and_say_so(configure, branching, tmp_path, capsys):
    config = configure(epochs=2, max_steps=None, accumulation=2, micro_batch_tokens=256, prefix_tree=True, **branching)
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
    options = {"max_steps": 40, "micro_batch_tokens": 512, "eval_fraction": 0.2, "learning_rate": 1e-2}
    return options | {"data": (str(tmp_path / "rule.jsonl"),)}


@pytest.mark.parametrize(
    ("options", "package"),
    [
        ({"loss": "rank"}, None),
        ({"loss": "bce", "dtype": "bfloat16", "accumulation": 2}, None),
        ({"loss": "bce", "compare": "sibling", "recompute_layers": "all"}, None),
        ({"loss": "listwise"}, None),
        ({"lora_rank": 16, "learning_rate": 4e-2}, "peft"),
    ],
)
def test_it_learns(configure, rule, options, package):
    if package:
        pytest.importorskip(package)
    assert train(configure(**(rule | options)))["pair_accuracy"] > 0.95


def test_orm_learns(configure, rule):
    """From the last step alone: half the entropy of the outcomes (0.8^4 are right: 0.677)."""
    assert train(configure(loss="orm", **rule))["loss"] < 0.34


@pytest.mark.processes
def test_batches_from_a_worker_process(configure, tmp_path):
    for workers in (0, 1):
        train(configure(str(workers), loader_workers=workers, max_steps=2))
    assert untimed(tmp_path / "1" / "metrics.jsonl") == untimed(tmp_path / "0" / "metrics.jsonl")


def test_run_folder(configure, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "draw_curve", curve.draw_curve)
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
    with pytest.raises(PQMError, match="the run is complete"):
        train(configure(eval_every=5, save_every=4, keep_checkpoints=2, resume=True))


def test_the_next_step_is_launched_before_the_last_one_is_read(configure, monkeypatch):
    """The next step is queued before the host waits, so that a GPU is never idle."""
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
