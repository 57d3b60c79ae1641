"""Runs on several ranks that are killed, stopped or disturbed, and their checkpoints."""

import math
import os
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
from pqm_fast.common.files import LOCK_FILE
from pqm_fast.scoring.scorer import Scorer
from pqm_fast.train import loop, step
from pqm_fast.train.checkpoint import FILES
from pqm_fast.train.loop import train
from pqm_fast.train.metrics_file import read_metrics

pytestmark = pytest.mark.processes


OPTIONS = {"accumulation": 2, "max_steps": 9, "eval_every": 4}


@pytest.fixture(scope="module")
def whole(make_in, tmp_path_factory):
    """The folder of a run with OPTIONS on 2 ranks that nothing disturbed."""
    config = make_in(tmp_path_factory.mktemp("whole") / "run", **OPTIONS)
    in_ranks(2, lambda r: train(config, r) and None)
    return config.folder


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
    """On 2 ranks, then 3, then 1: the losses of a run on 1 that was never stopped."""
    options = {"max_steps": 10, "save_every": 3, "prefix_tree": True}
    train(make("whole", accumulation=4, **options))
    run = tmp_path / "run"

    def die_at(step):
        return lambda rank, now: now == step and rank == 0 and os.kill(os.getpid(), signal.SIGKILL)

    assert -9 in killed(make("run", accumulation=2, **options), 2, die_at(5))
    assert -9 in killed(make("run", accumulation=2, resume=True, **options), 3, die_at(4))  # step 7
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
def test_random_kills(make, whole):
    """Resumed again and again until the end: the result is that of the undisturbed run, to the bit."""
    random_kills(make, whole, kills=3, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_many_random_kills(make, whole, seed):
    random_kills(make, whole, kills=10, seed=seed)


def random_kills(make, whole, kills, seed):
    """Runs that are killed and resumed until `kills` of them have hit: the result is that of the undisturbed run."""
    random, count, number = Random(seed), 0, 0
    while count < kills:  # a run may end before it is killed
        number += 1
        run, hits = _killed_at_random(make, f"run-{number}", OPTIONS | {"save_every": 3}, random, kills - count)
        count += hits
        assert untimed(run / "metrics.jsonl") == untimed(whole / "metrics.jsonl")
        for name in ("model.safetensors", "metrics.json"):
            assert (run / name).read_bytes() == (whole / name).read_bytes()
        # a temporary folder has a lock, but while its writer makes or removes it; if killed then, it stays for an hour
        assert not [*run.rglob(LOCK_FILE), *run.rglob(".lock")]


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
                for victim in (processes, processes[:1], processes[1:])[(kills - hits) % 3]:  # all of them, or one
                    with suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)
            codes = exit_codes(processes)
            text = "".join((said / f"said-{rank}").read_text() for rank in range(2))
        if codes == [0, 0] or "the run is complete" in text:
            return run, hits
        assert -9 in codes, text
        assert "Traceback" not in text, text
        hits += 1


def test_a_signal_to_one_rank_stops_all(make, whole, tmp_path):
    """With a checkpoint, from which the run goes on as if it had not been stopped."""
    codes = killed(
        make("run", **OPTIONS), 2, lambda rank, step: step == 5 and rank == 1 and os.kill(os.getpid(), signal.SIGTERM)
    )
    assert codes == [143, 143]
    run = tmp_path / "run"
    [kept] = (run / "checkpoints").glob("step-*")
    assert int(kept.name[-1]) in (6, 7)
    in_ranks(2, lambda r: train(make("run", resume=True, **OPTIONS), r) and None)
    assert untimed(run / "metrics.jsonl") == untimed(whole / "metrics.jsonl")
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


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
    """Written ahead by several ranks, two of which have the same part, from a copy; and read by one."""
    options = {"save_every": 2, "eval_every": 2, "max_steps": 4, "keep_checkpoints": 1, "shard_within": 2}
    config = make("run", **options)

    def work(r):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "CheckpointWriter", partial(write_ahead, loop.CheckpointWriter))
            train(config, r)

    in_ranks(4, work)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    held_out = {row["step"]: row["loss"] for row in rows if row["kind"] == "eval"}
    best = min(held_out, key=held_out.get)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == sorted(
        {"best", "latest", f"step-{best:07d}", "step-0000004"}
    )
    assert (checkpoints / "latest").read_text() == "step-0000004\n"
    assert find_damage(checkpoints / "step-0000004", FILES) is None
    assert main(["export", str(config.folder), "--out", str(tmp_path / "hf"), "--save-dtype", "float32"]) == 0
    assert find_damage(tmp_path / "hf", ["model.safetensors"]) is None
    exported, final = (load_file(folder / "model.safetensors") for folder in (tmp_path / "hf", config.folder))
    assert exported.keys() == final.keys()
    assert all(exported[name].equal(final[name]) for name in final)
    assert main(["export", str(config.folder), "--step", "best", "--out", str(tmp_path / "best")]) == 0
    scores = Scorer.from_pretrained(tmp_path / "best", device="cpu").score([("w3 w4", ["w5", "w6 w7"])])
    assert len(scores[0]) == 2


def write_ahead(whole, *given, ahead, **named):
    return whole(*given, ahead=True, **named)
