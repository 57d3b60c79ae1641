"""`pqm-fast probe` from the options to the checkpoint: equal Q-values, equal runs, kill -9, bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_probes import config_in, killed_at_row, saved_model
from transformers import AutoModelForTokenClassification

from pqm_fast.cli import main
from pqm_fast.common.combination import parse_loss
from pqm_fast.common.journal import Journal
from pqm_fast.data.read import read_records
from pqm_fast.errors import PQMError
from pqm_fast.probe.frozen import FrozenDecoder, with_dtype
from pqm_fast.probe.run import probe
from pqm_fast.probe.splits import Sides
from pqm_fast.probe.trainer import HeadTrainer
from pqm_fast.scoring.scorer import Scorer


def rows_of(folder):
    return [json.loads(line) for line in (Path(folder) / "heads.jsonl").read_text().splitlines()]


def without_seconds(folder):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(folder)]


def same_bytes(a, b):
    names = {p.name for p in Path(a).iterdir()} - {
        "config.yaml",
        "metrics.jsonl",
        "heads.jsonl",
        "README.md",
        "SHA256SUMS",
    }
    assert {p.name for p in Path(b).iterdir()} >= names
    differing = [n for n in sorted(names) if (Path(a) / n).read_bytes() != (Path(b) / n).read_bytes()]
    assert not differing
    assert without_seconds(a) == without_seconds(b)


@pytest.mark.parametrize(("architecture", "layer"), [("llama", 2), ("llama", 3), ("gemma3_text", 2), ("gpt2", 1)])
def test_the_checkpoint_gives_the_q_of_the_probe(tmp_path, architecture, layer):
    saved_model(tmp_path / "model", architecture)
    config = config_in(tmp_path, layers=(layer,), losses=("rank",))
    chosen = probe(config)
    tensors = np.load(tmp_path / "run" / "heads.npz")
    weight = torch.from_numpy(tensors[f"{chosen['name']}.weight"])
    assert chosen["layer"] == layer
    # q = normed states . weight + bias, from the cache
    decoder = FrozenDecoder(config, [])
    probed = decoder.probed(config.data, outcomes=False)
    x = probed.rows(layer)[torch.from_numpy(probed.row_of_step.copy())]
    if decoder.norm is not None:
        norm_weight, eps = decoder.norm
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * norm_weight
    q = x @ weight + torch.from_numpy(tensors[f"{chosen['name']}.bias"])
    records = list(read_records(config.data[0]))
    scorer = Scorer.from_pretrained(config.out, dtype="float32", device="cpu", max_tokens=100)
    scores = torch.tensor([v for own in scorer.score([(r.prompt, r.steps) for r in records]) for v in own])
    assert q.std() > 1e-3
    assert (scores - q).abs().max() <= 1e-5 * max(1.0, float(q.abs().max()))
    # it is a checkpoint of its depth for transformers alone
    loaded, info = (
        AutoModelForTokenClassification.from_pretrained(config.out, output_loading_info=True, dtype=torch.float32)
        if architecture != "gemma3_text"
        else (None, {"missing_keys": []})
    )  # it has no such class in transformers
    assert not info["missing_keys"]
    if loaded is not None:
        assert loaded.config.num_hidden_layers == layer


def test_two_runs_are_identical_and_a_bfloat16_probe_keeps_its_head(tmp_path):
    for out in ("a", "b"):
        probe(config_in(tmp_path, out, seeds=(0, 1), losses=("rank", "bce"), dtype="bfloat16"))
    same_bytes(tmp_path / "a", tmp_path / "b")
    chosen = json.loads((tmp_path / "a" / "probe.json").read_text())["chosen"]
    weights = AutoModelForTokenClassification.from_pretrained(str(tmp_path / "a"), dtype=torch.float32).score.weight
    head = np.load(tmp_path / "a" / "heads.npz")[f"{chosen}.weight"]
    assert np.array_equal(weights.detach().numpy()[0], head)  # not rounded to bfloat16
    with pytest.raises(PQMError, match="already holds a finished probe"):
        probe(config_in(tmp_path, "a"))
    before = (tmp_path / "model" / "config.json").read_bytes()
    with pytest.raises(PQMError, match="is not empty, and holds no interrupted probe"):
        probe(config_in(tmp_path, "model"))
    assert (tmp_path / "model" / "config.json").read_bytes() == before


def test_interrupted_training_continues_with_the_next_head(tmp_path, monkeypatch):
    options = {"losses": ("rank", "bce+sibling"), "seeds": (0, 1)}
    probe(config_in(tmp_path, "whole", **options))
    calls, real = [], Journal.append

    def append(journal, row):
        calls.append(row)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(journal, row)

    monkeypatch.setattr(Journal, "append", append)
    with pytest.raises(KeyboardInterrupt):
        probe(config_in(tmp_path, "cut", **options))
    monkeypatch.setattr(Journal, "append", lambda *a: calls.append(1) or real(*a))
    calls.clear()
    probe(config_in(tmp_path, "cut", **options))
    assert len(calls) == 8 - 3  # the heads that were missing
    same_bytes(tmp_path / "whole", tmp_path / "cut")
    calls.clear()
    monkeypatch.setattr(Journal, "append", append)
    with pytest.raises(KeyboardInterrupt):
        probe(config_in(tmp_path, "other", **options))
    with pytest.raises(PQMError, match="was started with other options: patience"):
        probe(config_in(tmp_path, "other", **options, patience=3))
    assert with_dtype(config_in(tmp_path, dtype="auto"), tmp_path / "other" / "heads.jsonl").dtype == "float32"


@pytest.mark.processes
def test_killed_while_training_resumes_to_the_same_bytes(tmp_path):
    probe(config_in(tmp_path, "whole", seeds=(0, 1)))
    killed_at_row(3, lambda: probe(config_in(tmp_path, "cut", seeds=(0, 1))))
    probe(config_in(tmp_path, "cut", seeds=(0, 1)))
    same_bytes(tmp_path / "whole", tmp_path / "cut")


def test_the_command(tmp_path, capsys):
    config = config_in(tmp_path)
    arguments = ["--model", config.model, "--data", *config.data, "--out", config.out, "--cache-dir", config.cache_dir]
    arguments += [
        "--layers",
        "3",
        "--learning-rates",
        "0.03",
        "--epochs",
        "3",
        "--dtype",
        "float32",
        "--no-progress",
    ]
    assert main(["probe", *arguments]) == 0
    out = capsys.readouterr().out
    assert "layers 3 of 3, 32 wide, float32 on cpu" in out
    assert f"checkpoint: {config.out}" in out
    assert {
        "config.yaml",
        "heads.jsonl",
        "heads.npz",
        "layers.png",
        "metrics.jsonl",
        "probe.json",
        "README.md",
    } <= {path.name for path in Path(config.out).iterdir()}
    assert main(["status", config.out]) == 0
    assert "finished" in capsys.readouterr().out
    assert main(["report", config.out, "--out", str(tmp_path / "page.html")]) == 0
    arguments = ["--model", config.model, "--init-head", config.out, "--data", *config.data, "--max-steps", "1"]
    arguments += ["--out", str(tmp_path / "tuned"), "--micro-batch-tokens", "128", "--max-length", "64"]
    arguments += ["--device", "cpu", "--dtype", "float32", "--step-token", "last", "--no-progress"]
    assert main(["train", *arguments]) == 0


def test_every_loss_holds_out_the_same_questions(tmp_path):
    """Also if one of them cannot use some records."""
    config = config_in(tmp_path, losses=("bce", "orm"), max_length=20)  # orm needs the last step
    decoder = FrozenDecoder(config, notes := [])
    probed = decoder.probed(config.data, outcomes=False)
    assert (probed.dataset.steps_cut > 0).any()
    trainer = HeadTrainer(config, decoder, Sides(probed, probed), notes)
    question = probed.dataset.question
    (_, bce), (_, orm) = (trainer.split(parse_loss(loss)) for loss in config.losses)
    assert len(orm) < len(bce)
    assert set(question[orm.indices].tolist()) <= set(question[bce.indices].tolist())


def test_held_out_records_of_their_own(tmp_path):
    config = config_in(tmp_path)
    lines = Path(config.data[0]).read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(lines[:90]))
    (tmp_path / "held.jsonl").write_text("".join(line for i, line in enumerate(lines) if i % 30 < 10))
    chosen = probe(
        config_in(tmp_path, data=(str(tmp_path / "train.jsonl"),), eval_data=(str(tmp_path / "held.jsonl"),))
    )
    assert chosen["held_out"]["trajectories"] == 40
    start = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert (start["trajectories"], start["held_out"]) == (60, 40)  # 30 records share their questions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": ("rank", "ranks")}, "losses ranks: choose a loss"),
        ({"losses": ()}, "losses: none was given"),
        ({"layers": (0,)}, "layers: 0 was given"),
        ({"epochs": 0}, "epochs: 0 was given"),
        ({"learning_rates": (float("nan"),)}, "learning_rates: nan was given"),
        ({"eval_fraction": 0.0}, "eval_fraction: 0.0 was given"),
        ({"max_length": 4096}, "max_length: 4096 is more than the model's context"),
    ],
)
def test_bad_options(tmp_path, changes, message):
    with pytest.raises(PQMError, match=message):
        probe(config_in(tmp_path, **changes))
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_bad_data(tmp_path):
    config = config_in(tmp_path)
    rows = [json.loads(line) for line in Path(config.data[0]).read_text().splitlines()]

    def with_labels(label):
        file = tmp_path / "labels.jsonl"
        file.write_text("".join(json.dumps(r | {"labels": [label(y) for y in r["labels"]]}) + "\n" for r in rows))
        return config_in(tmp_path, data=(str(file),))

    with pytest.raises(PQMError, match="no step has a label"):
        probe(with_labels(lambda _: None))
    with pytest.raises(PQMError, match=r"label 0.5 is neither 0 nor 1, which the loss rank needs"):
        probe(with_labels(lambda _: 0.5))
    with pytest.raises(PQMError, match=r"the held-out questions have no wrong steps"):
        probe(with_labels(lambda _: 1))
    one = tmp_path / "one.jsonl"
    one.write_text("".join(json.dumps(r | {"prompt": "w3"}) + "\n" for r in rows))
    with pytest.raises(PQMError, match="no trajectory is left to hold out; a probe needs two questions"):
        probe(config_in(tmp_path, data=(str(one),)))
