"""A run that is resumed goes on as if it had not been interrupted, and only if it is the same run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from cut_off import cut_off
from safetensors.torch import load_file
from untimed import untimed

from pqm_fast.common.checksums import write_sums
from pqm_fast.errors import PQMError
from pqm_fast.train import loop
from pqm_fast.train.loop import train
from pqm_fast.train.memory import Sizes
from pqm_fast.train.run import prepare
from pqm_fast.train.run_files import complete_checkpoints


@pytest.mark.parametrize(
    ("options", "dropout"),
    [
        pytest.param({"dtype": "float32", "accumulation": 2, "epochs": 3}, 0.0, id="float32"),
        pytest.param({"dtype": "bfloat16", "accumulation": 2}, 0.1, id="bfloat16, dropout"),
        pytest.param({"dtype": "float32", "loss": "bce", "compare": "sibling", "prefix_tree": True}, 0.0, id="trees"),
    ],
)
def test_resume_is_exact_to_the_bit(configure, branching, tmp_path, options, dropout):
    """Killed while it wrote a line of metrics, after its checkpoint of step 5."""
    model = tiny.model_folder(tmp_path / "model", attention_dropout=dropout, num_hidden_layers=2)
    options = options | {"model": str(model), "save_every": 5, "keep_checkpoints": 3, "max_steps": 8}
    options |= branching if options.get("prefix_tree") else {}
    whole, cut = configure("whole", **options).folder, configure("cut", **options).folder
    train(configure("whole", **options))
    shutil.copytree(whole, cut)
    cut_off(cut, 5)
    lines = (cut / "metrics.jsonl").read_text().split("\n")
    (cut / "metrics.jsonl").write_text("\n".join(lines[:8]) + '\n{"kind": "train", "st')
    train(configure("cut", **options, resume=True))
    metrics = untimed(whole / "metrics.jsonl")
    assert len(metrics) == 9  # 8 steps and the evaluation at the end
    assert untimed(cut / "metrics.jsonl") == metrics
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_eight_bit_moments_resume_exactly(configure, tmp_path):
    pytest.importorskip("torchao")
    model = str(tiny.model_folder(tmp_path / "wide", num_hidden_layers=1, hidden_size=64))
    options = {"model": model, "optimizer": "adamw-8bit", "dtype": "bfloat16", "save_every": 2, "max_steps": 4}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with torch.compiler.set_stance("force_eager"):  # torchao compiles its step, which is not what is tested
        train(configure("whole", **options))
        shutil.copytree(whole, cut)
        cut_off(cut, 2)
        train(configure("cut", **options, resume=True))
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    stored = load_file(next((whole / "checkpoints" / "step-0000002").glob("*.safetensors")))
    codes = [tensor for name, tensor in stored.items() if name.endswith(".exp_avg.codes")]
    assert [codes.dtype for codes in codes] == [torch.uint8] * 4  # q, k, v and o; the others are not whole blocks


def test_random_numbers_follow_from_the_step(configure, tmp_path, monkeypatch):
    """Dropout is the same in a run that is resumed."""
    drawn = []

    def draw(*given, whole=loop.train_step, **named):
        drawn.append(torch.rand(()).item())
        return whole(*given, **named)

    monkeypatch.setattr(loop, "train_step", draw)
    options = {"save_every": 3, "max_steps": 6}
    train(configure(**options))
    assert len(set(drawn)) == 6
    whole = drawn.copy()
    drawn.clear()
    cut_off(tmp_path / "run", 3)
    train(configure(**options, resume=True))
    assert drawn == whole[3:]


@pytest.mark.parametrize("change", ["label", "record"])
def test_resuming_on_changed_data_is_refused(configure, tmp_path, change):
    file = tiny.write_data(tmp_path / "data.jsonl")
    config = configure(data=(file,), save_every=2, max_steps=2)
    train(config)
    cut_off(config.folder, 2)
    text = Path(file).read_text()
    row = json.dumps({"id": "new", "prompt": "w3 w50", "completions": ["w5"], "labels": [True]}) + "\n"
    Path(file).write_text(text + row if change == "record" else text.replace("true", "false", 1))
    with pytest.raises(PQMError, match="the run was started with other data: data "):
        train(replace(config, resume=True))


def test_a_run_from_before_an_option_existed_is_resumed(configure, tmp_path):
    options = {"save_every": 2, "max_steps": 3}
    train(configure(**options))
    cut_off(tmp_path / "run", 2)
    stored = tmp_path / "run" / "config.yaml"
    newer = ("prefix_tree", "  field:", "  label_map:")
    lines = [line for line in stored.read_text().splitlines() if not line.startswith(newer)]
    assert len(lines) == len(stored.read_text().splitlines()) - len(newer)
    stored.write_text("\n".join(lines))
    with pytest.raises(PQMError, match=r"different: prefix_tree \(False then, True now\)"):
        train(configure(**options, resume=True, prefix_tree=True))
    train(configure(**options, resume=True))


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


def test_a_resumed_run_has_its_sizes(configure, tmp_path):
    """With sizes on auto, it keeps those that it was started with, whatever would fit now; layers may be recomputed."""
    options = {"micro_batch_tokens": "auto", "save_every": 1, "max_steps": 2}
    train(configure(**options))
    cut_off(tmp_path / "run", 2)
    [*_, newest] = complete_checkpoints(tmp_path / "run" / "checkpoints")
    state = json.loads((newest / "state.json").read_text())
    assert (state["micro_batch_tokens"], state["micro_batches"]) == (16384, 1)
    (newest / "state.json").write_text(json.dumps(state | {"micro_batch_tokens": 256, "micro_batches": 4}))
    write_sums(newest)
    assert prepare(configure(**options, resume=True)).order.sizes == Sizes(256, 4, 0)
    assert prepare(configure(**options, resume=True, recompute_layers="all")).order.sizes == Sizes(256, 4, 2)
