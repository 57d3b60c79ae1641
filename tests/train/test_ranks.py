"""Training on several ranks gives the losses and weights of one."""

import tempfile
from pathlib import Path

import pytest
import tiny
from rank_processes import exit_codes, in_ranks, start_ranks
from safetensors.torch import load_file

from pqm_fast.train import run as run_module
from pqm_fast.train.layers import use_float8
from pqm_fast.train.loop import train
from pqm_fast.train.metrics_file import read_metrics

pytestmark = pytest.mark.processes


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
    ("loss", "trees", "counts"),
    [
        ("rank", False, (2, 4)),
        ("bce", True, (2,)),
        ("listwise-softmin", True, (2,)),
    ],
)
def test_the_same_on_1_2_and_4_ranks(make, loss, trees, counts):
    """A rank without a step in a micro-batch, and the last step of a pass, which not every rank has a part of, too."""
    options = {"loss": loss, "prefix_tree": trees}
    one = trained(make("1", accumulation=4, **options), 1)
    for ranks in counts:
        assert_alike(trained(make(str(ranks), accumulation=4 // ranks, **options), ranks), one, loss)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"dtype": "bfloat16", "accumulation": 2}, id="bfloat16"),
        pytest.param({"shard_within": 2, "accumulation": 1}, id="hybrid"),
        pytest.param({"lora_rank": 4, "recompute_layers": "all", "accumulation": 2}, id="adapters, recomputed"),
        pytest.param({"layers": "compile", "accumulation": 2, "max_steps": 3}, id="compiled", marks=pytest.mark.slow),
    ],
)
def test_ways_of_training_on_several_ranks(make, options):
    """They give the weights of one rank: to rounding in bfloat16, in which gradients are rounded at other places."""
    ranks = 4 // options["accumulation"]
    options = {"max_steps": 4, "eval_fraction": 0, "save_every": 2} | options
    if options.get("lora_rank"):
        pytest.importorskip("peft")
    one = trained(make("1", **(options | {"accumulation": 4, "shard_within": None})), 1)
    found = trained(make("n", **options), ranks)
    assert_alike(found, one, "rank", 3e-3 if options.get("dtype") == "bfloat16" else 1e-5)


def test_eight_bit_products_on_several_ranks(make, tmp_path, monkeypatch):
    """Emulated, since only GPUs have them: the losses of one rank, far closer than the 3 bits of an 8-bit mantissa."""
    pytest.importorskip("torchao")
    model = tiny.model_folder(tmp_path / "wide", num_hidden_layers=1, hidden_size=64, intermediate_size=96)

    def set_up(model, *given, whole=run_module.set_up_layers):
        whole(model, *given)
        assert use_float8(model, emulate=True) == 7

    monkeypatch.setattr(run_module, "set_up_layers", set_up)
    options = {"model": str(model), "max_steps": 3, "eval_fraction": 0, "dtype": "bfloat16"}
    one, two = (trained(make(str(n), accumulation=4 // n, **options), n)[0] for n in (1, 2))
    for row, other in zip(two, one, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-2)


def test_what_is_refused_on_several_ranks(make, tmp_path):
    for options, message in (
        ({"optimizer": "adamw-8bit"}, "adamw-8bit runs in one process"),
        ({"shard_within": 2}, "shard_within: 2 was given; it must divide the number of processes, 3"),
    ):
        with tempfile.TemporaryDirectory() as said:
            config = make("run", **options)
            assert exit_codes(start_ranks(3, lambda r, config=config: train(config, r), Path(said))) == [1] * 3
            texts = [(Path(said) / f"said-{rank}").read_text() for rank in range(3)]
        assert sum(message in text for text in texts) == 1
        assert not (tmp_path / "run").exists()
