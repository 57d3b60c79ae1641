"""Training on several ranks: the same losses and weights as on one, and runs that survive."""

import json
import os
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
import tiny
from rank_processes import exit_codes, in_ranks, start_ranks
from safetensors.torch import load_file
from untimed import untimed

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
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
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


def losses(folder):
    """The loss of each step and evaluation."""
    return {(row["kind"], row["step"]): row["loss"] for row in read_metrics(folder / "metrics.jsonl")}


def killed(config, ranks, act):
    """Trains on so many ranks until `act`, called in each rank before each step with (rank, step), has killed it."""
    real, step = loop.train_step, [0]

    def work(r):
        def counted(*given, **named):
            step[0] += 1
            act(r.rank, step[0])
            return real(*given, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "train_step", counted)
            train(config, r)

    with tempfile.TemporaryDirectory() as said:
        return exit_codes(start_ranks(ranks, work, Path(said)))


def test_resumed_on_another_number_of_ranks(make, tmp_path):
    """On 2 ranks, then 4, then 1: the losses of a run on 2 that was never stopped."""
    options = {"save_every": 5, "prefix_tree": True}
    in_ranks(2, lambda r: train(make("whole", accumulation=2, **options), r) and None)
    run = tmp_path / "run"

    def die_at(step):
        return lambda rank, now: now == step and rank == 0 and os.kill(os.getpid(), signal.SIGKILL)

    assert -9 in killed(make("run", accumulation=2, **options), 2, die_at(8))
    assert -9 in killed(make("run", accumulation=2, resume=True, **options), 4, die_at(8))  # step 13
    train(make("run", accumulation=2, resume=True, **options))
    found, expected = losses(run), losses(tmp_path / "whole")
    assert found.keys() == expected.keys()
    for key, loss in expected.items():
        assert found[key] == pytest.approx(loss, rel=1e-5), key
    whole, weights = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", run))
    for name, tensor in weights.items():
        assert tiny.relative_error(tensor, whole[name]) <= 1e-5, name


@pytest.mark.fault(
    "a rank of a training on several GPUs, all of them, or torchrun is killed, at any moment",
    how="`kill -9` after a random time",
    lost="the steps since the last checkpoint",
    recovers="`train --resume`, with the same result to the bit; `torchrun --max-restarts` does so by itself",
)
def test_random_kills(make, tmp_path):
    """Resumed again and again until the end: the result is that of the undisturbed run, to the bit."""
    options = {"save_every": 3, "eval_every": 8, "accumulation": 2, "max_steps": 12}
    in_ranks(2, lambda r: train(make("whole", **options), r) and None)
    random_kills(make, tmp_path, options, kills=10, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_many_random_kills(make, tmp_path, seed):
    options = {"save_every": 3, "eval_every": 8, "accumulation": 2, "max_steps": 12}
    in_ranks(2, lambda r: train(make("whole", **options), r) and None)
    random_kills(make, tmp_path, options, kills=10, seed=seed)


def random_kills(make, tmp_path, options, kills, seed):
    """Runs that are killed and resumed until `kills` of them have hit: the result is that of the undisturbed run."""
    random, count, number = Random(seed), 0, 0
    while count < kills:  # a run may end before it is killed
        number += 1
        run, hits = _killed_at_random(make, f"run-{number}", options, random, kills - count)
        count += hits
        assert untimed(run / "metrics.jsonl") == untimed(tmp_path / "whole" / "metrics.jsonl")
        for name in ("model.safetensors", "metrics.json"):
            assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert not [path for path in run.rglob("*") if ".tmp-" in path.name or path.name == ".lock"]


def _killed_at_random(make, out, options, random, kills):
    """Starts a run again and again until it ends, and kills it at most `kills` times. Returns its folder and how often
    that hit."""
    run, hits = make(out).folder, 0
    while True:
        with tempfile.TemporaryDirectory() as name:
            said, config = Path(name), make(out, resume=(run / "config.yaml").exists(), **options)

            def work(r, said=said, config=config):
                (said / f"joined-{r.rank}").touch()
                train(config, r)

            processes = start_ranks(2, work, said)
            while len(list(said.glob("joined-*"))) < 2:  # before that, the launcher notices a rank that is gone
                time.sleep(0.01)
            if hits < kills:
                time.sleep(random.uniform(0, 1.4))
                for victim in random.choice([processes, processes[:1], processes[1:]]):
                    with suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)
            codes = exit_codes(processes)
            text = "".join((said / f"said-{rank}").read_text() for rank in range(2))
        if codes == [0, 0] or "the run is complete" in text:
            return run, hits
        assert -9 in codes, text
        assert "Traceback" not in text, text
        hits += 1
