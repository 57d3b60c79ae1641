"""A training under torchrun itself: a rank is killed, then torchrun; the run is resumed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from rank_processes import in_ranks
from untimed import untimed

from pqm_fast.train.config import TrainConfig
from pqm_fast.train.loop import train
from pqm_fast.train.run_files import complete_checkpoints
from pqm_fast.train.stored_options import write_config

SECONDS = 120  # for a start on a busy machine


def started(folder, out, *options):
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "3"]
    command = ["-m", "pqm_fast", "train", "--config", str(folder / "options" / "config.yaml"), "--out", str(out)]
    command += options
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with open(folder / "said", "ab") as said:
        return subprocess.Popen([*run, *command], stdout=said, stderr=said, env=environment)


def children(process):
    """The ranks that torchrun has started, in order."""
    return sorted(
        int(stat.parent.name)
        for stat in Path("/proc").glob("[0-9]*/stat")
        if _read(stat).rpartition(")")[2].split()[1:2] == [str(process.pid)]
    )


def _read(file):
    try:
        return file.read_text()
    except OSError:  # the process has ended
        return ""


def wait_for(holds):
    until = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.processes
def test_a_rank_and_then_torchrun_are_killed(tmp_path):
    tiny.model_folder(tmp_path / "model", num_hidden_layers=1)
    options = {
        "model": str(tmp_path / "model"),
        "data": (tiny.write_data(tmp_path / "data.jsonl"),),
        "micro_batch_tokens": 64,
        "max_steps": 60,
        "save_every": 5,
        "eval_every": 0,
        "eval_fraction": 0.1,
        "log_every": 10,
        "progress": False,
        "cache_dir": str(tmp_path / "cache"),
        "device": "cpu",
        "dtype": "float32",
        "keep_checkpoints": 100,
    }
    run, whole = tmp_path / "run", tmp_path / "whole"
    (tmp_path / "options").mkdir()
    write_config(TrainConfig(out=str(tmp_path / "options"), **options))
    checkpoints = run / "checkpoints"
    torchrun = started(tmp_path, run)
    try:
        wait_for(lambda: complete_checkpoints(checkpoints))
        os.kill(children(torchrun)[1], signal.SIGKILL)
        there = len(complete_checkpoints(checkpoints))
        wait_for(lambda: len(complete_checkpoints(checkpoints)) > there + 1)  # torchrun has started both anew
        ranks = children(torchrun)
        torchrun.kill()
        assert torchrun.wait() == -signal.SIGKILL
        wait_for(lambda: not any(Path(f"/proc/{rank}").exists() for rank in ranks))
    finally:
        torchrun.kill()
    said = (tmp_path / "said").read_text()
    assert "resuming from" in said
    assert f"{checkpoints}/step-" in said
    assert "Traceback" not in said.replace("Traceback : N/A", ""), said
    assert started(tmp_path, run, "--resume").wait(SECONDS) == 0
    in_ranks(2, lambda r: train(TrainConfig(out=str(whole), **options), r) and None)
    assert untimed(run / "metrics.jsonl") == untimed(whole / "metrics.jsonl")
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
