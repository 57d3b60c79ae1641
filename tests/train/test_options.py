"""Each option of a run reaches the place where it acts."""

import pytest
import tiny
from cut_off import cut_off

from pqm_fast.errors import PQMError
from pqm_fast.train import active_run, evaluation, layer_setup, loop
from pqm_fast.train.checkpoint import CheckpointWriter
from pqm_fast.train.loop import train
from pqm_fast.train.metrics_file import read_metrics
from pqm_fast.train.run import prepare
from pqm_fast.train.step import Objective


def test_loss_zeta_and_clip(configure, monkeypatch):
    objectives = []

    def train_step(model, optimizer, batches, objective, whole=loop.train_step, **named):
        objectives.append(objective)
        return whole(model, optimizer, batches, objective, **named)

    monkeypatch.setattr(loop, "train_step", train_step)
    train(configure(loss="rank-theory", zeta=2.5, clip=0.25, max_steps=2))
    assert objectives == [Objective("rank-theory", 2.5, 0.25)] * 2


def test_the_learning_rate_that_is_logged(configure, tmp_path):
    train(configure(learning_rate=1.0, warmup_steps=4, max_steps=6, clip=1e-6))
    rates = [row["learning_rate"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_layers_attention_and_workers(configure, monkeypatch):
    calls = {}
    for name in ("compile_layers", "recompute"):
        monkeypatch.setattr(layer_setup, name, lambda *given, name=name: calls.update({name: given[1:]}))

    def load_steps(*given, workers, pin, whole=evaluation.load_steps):
        calls["workers"] = workers
        return whole(*given, workers=0, pin=pin)

    monkeypatch.setattr(evaluation, "load_steps", load_steps)
    config = configure(layers="compile", recompute_layers=1, attention="sdpa", loader_workers=3, max_steps=1)
    run = prepare(config)
    assert run.model.attention == "sdpa"
    assert run.pad_to == 128
    assert calls == {"compile_layers": (), "recompute": (1,)}
    train(config)
    assert calls["workers"] == 3
    calls.clear()
    assert prepare(configure("eager")).pad_to is None
    assert calls == {"recompute": (0,)}
    with pytest.raises(PQMError, match="attention 'flash' cannot be used here: it needs a CUDA device"):
        prepare(configure("other", attention="flash"))


def test_rates_count_the_steps_of_their_time(configure, tmp_path, monkeypatch):
    """With a clock on which every step takes a second, and saving or evaluating a hundred."""
    now = [0.0]

    def later(function, seconds):
        def slow(*given, **named):
            now[0] += seconds
            return function(*given, **named)

        return slow

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr(loop, "train_step", later(loop.train_step, 1.0))
    monkeypatch.setattr(CheckpointWriter, "save", later(CheckpointWriter.save, 100.0))
    monkeypatch.setattr(active_run, "evaluate", later(active_run.evaluate, 100.0))
    options = {"max_steps": 9, "save_every": 3, "eval_every": 2, "eval_fraction": 0.1}
    train(configure(**options))
    run = tmp_path / "run"
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "train"]
    # the evaluations to come (after steps 2, 4, 6, 8 and at the end) once one has been measured: the step's own too
    assert [row["eta_seconds"] for row in rows][2:] == [
        9 - step + 100.0 * (5 - (step - 1) // 2) for step in range(3, 10)
    ]
    assert all(0 < row["tokens_per_second"] <= 128 for row in rows)
    # as if stopped in the evaluation after step 6: the resumed run starts with this evaluation
    cut_off(run, 6)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if '"kind": "eval", "step": 6' not in line))
    train(configure(**options, resume=True))
    again = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["tokens_per_second"] for row in again] == [row["tokens_per_second"] for row in rows]


def test_an_architecture_with_layers_elsewhere(configure, tmp_path):
    """It trains with the default options; options that need its layers raise an error."""
    from transformers import AutoConfig

    folder = tmp_path / "opt"
    AutoConfig.for_model(
        "opt", vocab_size=97, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, word_embed_proj_dim=32, dropout=0.0,
    ).save_pretrained(folder)  # fmt: skip
    tiny.tokenizer().save_pretrained(folder)
    train(configure(model=str(folder), max_steps=2))
    for options in ({"recompute_layers": 1}, {"layers": "compile"}):
        with pytest.raises(PQMError, match="opt: its decoder layers were not found; pass --layers eager"):
            prepare(configure("other", model=str(folder), **options))


def test_what_needs_a_gpu_says_so(configure):
    for options in ({"float8": True}, {"layers": "liger"}):
        with pytest.raises(PQMError, match="needs a GPU"):
            train(configure(**options))
