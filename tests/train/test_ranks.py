"""Training on several ranks: the same losses and weights as on one, and runs that survive."""

import ctypes
import json
import math
import os
import re
import signal
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random

import pytest
import tiny
from rank_processes import exit_codes, in_ranks, start_ranks
from safetensors.torch import load_file
from untimed import untimed

from pqm_fast.cli import main
from pqm_fast.common.checksums import find_damage
from pqm_fast.data.encode import Template
from pqm_fast.scoring.scorer import Scorer
from pqm_fast.train import loop, step
from pqm_fast.train.checkpoint import FILES
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.loop import train
from pqm_fast.train.metrics_file import read_metrics
from pqm_fast.train.run import prepare

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
    options = {"max_steps": 8, "eval_fraction": 0, "save_every": 4} | options
    if options.get("lora_rank"):
        pytest.importorskip("peft")
    one = trained(make("1", **(options | {"accumulation": 4, "shard_within": None})), 1)
    found = trained(make("n", **options), ranks)
    assert_alike(found, one, "rank", 3e-3 if options.get("dtype") == "bfloat16" else 1e-5)


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


def test_a_signal_to_one_rank_stops_all(make, tmp_path):
    """With a checkpoint, from which the run goes on as if it had not been stopped."""
    options = {"accumulation": 2, "max_steps": 8, "eval_every": 3}
    in_ranks(2, lambda r: train(make("whole", **options), r) and None)
    codes = killed(
        make("run", **options), 2, lambda rank, step: step == 4 and rank == 1 and os.kill(os.getpid(), signal.SIGTERM)
    )
    assert codes == [143, 143]
    [kept] = (tmp_path / "run" / "checkpoints").glob("step-*")
    assert int(kept.name[-1]) in (5, 6)
    in_ranks(2, lambda r: train(make("run", resume=True, **options), r) and None)
    assert untimed(tmp_path / "run" / "metrics.jsonl") == untimed(tmp_path / "whole" / "metrics.jsonl")
    names = [tmp_path / name / "model.safetensors" for name in ("run", "whole")]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_a_nan_on_one_rank_is_left_out_by_all(make, tmp_path):
    """Its records are in the log, whatever rank they were on."""
    config = make("run", accumulation=2, max_steps=4, eval_fraction=0)

    def work(r):
        real, calls = step.backward, [0]

        def backward(model, batches, *given):
            outputs = real(model, batches, *given)
            calls[0] += 1
            if calls[0] == 2 and r.rank == 1:
                outputs[0].loss.fill_(math.nan)
                outputs[0].q[0] = math.nan
            return outputs

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(step, "backward", backward)
            train(config, r)

    in_ranks(2, work)
    [row] = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "skipped"]
    assert (row["step"], row["reason"], len(row["records"])) == (2, "not finite", 1)
    assert row["records"][0].startswith("r")


def test_the_best_checkpoint_is_kept_and_exported(make, tmp_path):
    """Written ahead by two ranks, from a copy, and read by one."""
    config = make("run", accumulation=2, save_every=2, eval_every=2, max_steps=8, keep_checkpoints=1)

    def work(r):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "CheckpointWriter", partial(write_ahead, loop.CheckpointWriter))
            train(config, r)

    in_ranks(2, work)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    held_out = {row["step"]: row["loss"] for row in rows if row["kind"] == "eval" and row["step"] < 8}
    best = min(held_out, key=held_out.get)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == sorted(
        {"best", "latest", f"step-{best:07d}", "step-0000008"}
    )
    assert (checkpoints / "latest").read_text() == "step-0000008\n"
    assert find_damage(checkpoints / "step-0000008", FILES) is None
    assert main(["export", str(config.folder), "--out", str(tmp_path / "hf"), "--save-dtype", "float32"]) == 0
    assert find_damage(tmp_path / "hf", ["model.safetensors"]) is None
    exported, final = (load_file(folder / "model.safetensors") for folder in (tmp_path / "hf", config.folder))
    assert exported.keys() == final.keys()
    assert all(exported[name].equal(final[name]) for name in final)
    assert main(["export", str(config.folder), "--step", "best", "--out", str(tmp_path / "best")]) == 0
    scores = Scorer.from_pretrained(tmp_path / "best", device="cpu").score([("w3 w4", ["w5", "w6 w7"])])
    assert len(scores[0]) == 2


def write_ahead(whole, *given, ahead):
    return whole(*given, ahead=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--step", "7"], "no checkpoint of step 7; there are those of 2, 4"),
        (["RUN", "--step", "best"], "no checkpoint was evaluated, so none is the best; give --step N"),
        (["elsewhere"], "no checkpoint in elsewhere/checkpoints; name a run folder that has one"),
        (["RUN", "--out", "RUN"], "is not empty; choose another --out"),
    ],
)
def test_what_cannot_be_exported(make, tmp_path, capsys, arguments, message):
    config = make("run", save_every=2, max_steps=4, eval_fraction=0)
    train(config)
    named = [str(config.folder) if argument == "RUN" else argument for argument in arguments]
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "hf")]
    assert main(["export", *named, *out]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


def resident(name):
    """VmRSS or VmHWM, the most since it was reset, of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def test_the_memory_of_a_rank_follows_its_estimate(make, world, tmp_path):
    """26 million parameters in float32 with AdamW: the peak of each of 1, 2 and 4 ranks, without that of loading.

    Freed memory goes back to the system at once here. By default glibc keeps blocks of this size for later, several
    times as much as a sharded step needs at a time.
    """
    model = tiny.model_folder(
        tmp_path / "wide", num_hidden_layers=8, hidden_size=512, intermediate_size=1408, num_attention_heads=8
    )
    options = {"model": str(model), "max_steps": 2, "eval_fraction": 0, "micro_batch_tokens": 128, "log_every": 2}

    def work(ranks):
        assert ctypes.CDLL(None).mallopt(-3, 65536) == 1  # M_MMAP_THRESHOLD
        before = resident("VmRSS")
        real = loop.train_step

        def step(*given, **named):
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
            return real(*given, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "train_step", step)
            notes = []
            patch.setattr(loop, "prepare", lambda *given: notes.append(prepare(*given)) or notes[0])
            train(make(str(ranks.world), **options), ranks)
        [note] = [note for note in notes[0].notes if note.startswith("memory, estimated: ")]
        return resident("VmHWM") - before, 1e9 * float(re.search(r"= ([\d.]+) GB", note)[1])

    peaks = {}
    for count in (1, 2, 4):
        results = in_ranks(count, work)
        for peak, estimate in results:
            assert 0.7 * estimate - 5e7 <= peak <= 1.3 * estimate + 5e7, (count, peak, estimate)  # a tenth of a GB
        peaks[count] = max(peak for peak, _ in results)
    assert peaks[2] < 0.8 * peaks[1]
    assert peaks[4] < 0.8 * peaks[2]
