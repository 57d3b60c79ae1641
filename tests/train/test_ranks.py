"""Training on several ranks: the same losses and weights as on one, and runs that survive."""

import json

import pytest
import tiny
import torch
from rank_processes import in_ranks
from safetensors.torch import load_file

from pqm_fast.data.encode import Template
from pqm_fast.train import loop
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.loop import train
from pqm_fast.train.metrics_file import read_metrics

STEPS = 20


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """Drawing is slow."""
    monkeypatch.setattr(loop, "draw_curve", lambda folder: (folder / "training.png").write_bytes(b""))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny.model_folder(folder / "model", num_hidden_layers=2)
    data = tiny.write_data(folder / "data.jsonl", count=240, questions=40)
    rows = [json.loads(line) for line in open(data)]
    for row in rows:  # whether the solution is right, for the losses that read it
        row["correct"] = bool(all(row["labels"]))
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def make(world, tmp_path):
    def configure(out, **options):
        base = {
            "model": str(world / "model"),
            "data": (str(world / "data.jsonl"),),
            "micro_batch_tokens": 128,
            "max_length": 64,
            "max_steps": STEPS,
            "learning_rate": 1e-3,
            "eval_every": 10,
            "save_every": 0,
            "save_dtype": "float32",
            "log_every": 1,
            "progress": False,
            "cache_dir": str(world / "cache"),
            "device": "cpu",
            "dtype": "float32",
            "layers": "eager",
            "template": Template(step_token="last"),
        }
        return TrainConfig(out=str(tmp_path / out), **(base | options))

    return configure


def trained(config, ranks):
    """The rows of metrics and the weights of a run on so many ranks."""
    if ranks == 1:
        train(config)
    else:
        in_ranks(ranks, lambda r: train(config, r) and None)
    weights = load_file(config.folder / "model.safetensors")
    return read_metrics(config.folder / "metrics.jsonl"), weights


def assert_alike(found, expected, loss, tolerance=1e-5):
    rows, weights = found
    expected_rows, expected_weights = expected
    assert [(row["kind"], row["step"]) for row in rows] == [(row["kind"], row["step"]) for row in expected_rows]
    for row, other in zip(rows, expected_rows, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=tolerance), (row["kind"], row["step"])
        if row["kind"] == "train":
            assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=10 * tolerance)
        assert row["pair_accuracy"] == pytest.approx(other["pair_accuracy"], abs=0.01, nan_ok=True)
    for name, tensor in weights.items():
        if not (name == "score.bias" and loss in tiny.WITHOUT_LEVEL):
            assert tiny.relative_error(tensor, expected_weights[name]) <= tolerance, name


@pytest.mark.parametrize(
    ("loss", "trees"),
    [
        ("rank", False),
        ("rank", True),
        ("pairwise", False),
        ("bce", True),
        ("orm", False),
        ("first-error", True),
        ("sibling", True),
        ("group-contrastive", False),
        ("listwise", True),
    ],
)
def test_the_same_on_1_2_and_4_ranks(make, loss, trees):
    """A rank without a step in a micro-batch, and the last step of a pass, which not every rank has a part of, too."""
    options = {"loss": loss, "prefix_tree": trees}
    one = trained(make("1", accumulation=4, **options), 1)
    for ranks in (2, 4):
        assert_alike(trained(make(str(ranks), accumulation=4 // ranks, **options), ranks), one, loss)
