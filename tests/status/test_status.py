"""`pqm-fast status`: what it says about runs in every state, and that it disturbs none."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

from pqm_fast.cli import main
from pqm_fast.common.checksums import write_sums
from pqm_fast.common.lock import locked
from pqm_fast.data.encode import Template
from pqm_fast.status import state
from pqm_fast.status.files import read_run
from pqm_fast.status.numbers import trend
from pqm_fast.status.summary import Summary, summarise
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.log import RunLog
from pqm_fast.train.loop import train

NOW = 1_800_000_000.0
START = {"kind": "start", "step": 0, "total_steps": 1000, "time": NOW, "host": "here", "device": "cuda:0", "world": 8}


def train_row(step: int, **figures: float) -> dict:
    defaults = {"loss": 1.0, "step_accuracy": 0.5, "grad_norm": 2.0, "eta_seconds": 1000.0 - step}
    rates = {"tokens_per_second": 100.0 * step, "trajectories_per_second": 1.0 * step}
    return {"kind": "train", "step": step, **defaults, **rates, **figures}


def write_rows(folder: Path, rows: list[dict], end: bytes = b"") -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "metrics.jsonl"
    file.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows) + end)
    os.utime(file, (NOW, NOW))
    return folder


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / "checkpoints" / f"step-{step:07d}"
    path.mkdir(parents=True)
    for name in ("weights.safetensors", "state.json"):
        (path / name).write_text(name)
    write_sums(path)
    for changed in (*path.iterdir(), path, path.parent):
        os.utime(changed, (NOW - 60, NOW - 60))
    return path


def summary(folder: Path, later: float = 0.0) -> Summary:
    return summarise(read_run(folder), NOW + later)


# ---- figures --------------------------------------------------------------------------------------------------------


def test_the_trend_is_the_line_through_the_last_tenth():
    """Compared with numpy's fit, and its standard error from the covariance of that fit."""
    rng = np.random.default_rng(0)
    for slope, direction in ((0.02, "rising"), (-0.02, "falling"), (0.0, "steady")):
        steps = np.arange(10, 1001, 10)
        values = slope * steps + rng.normal(0, 0.1, len(steps))
        values[:80] = 99.0  # long ago
        found = trend(list(zip(steps.tolist(), values.tolist(), strict=True)))
        last = steps > 900
        fit, covariance = np.polyfit(steps[last], values[last], 1, cov=True)
        assert found.last == values[-1]
        assert found.change == pytest.approx(fit[0] * 90)
        assert found.since_step == 910
        assert found.direction == direction
        assert (abs(fit[0]) > 2 * math.sqrt(covariance[0, 0])) == (direction != "steady")


@pytest.mark.parametrize(
    ("points", "change", "since"),
    [
        ([], None, None),
        ([(5, 1.0)], None, 5),
        ([(0, 4.0), (100, 1.0), (1000, 3.0)], 2.0, 100),  # one evaluation in the last tenth: since the one before
        ([(990, 1.0), (995, 1.5), (1000, 2.0)], 1.0, 990),
        ([(7, 1.0), (7, 2.0)], None, 7),
    ],
)
def test_few_points_have_no_direction(points, change, since):
    found = trend(points)
    if found is None:
        assert not points
    else:
        assert (found.last, found.change, found.since_step, found.direction) == (points[-1][1], change, since, None)


def test_the_figures_of_a_run(tmp_path):
    rows = [START, *(train_row(step) for step in range(5, 401, 5))]
    rows += [{"kind": "eval", "step": step, "loss": 0.3, "auroc": auroc} for step, auroc in ((200, 0.9), (400, 0.8))]
    rows += [{"kind": "note", "step": 401}, {"kind": "train", "step": 400, "loss": "x", "grad_norm": None}]
    run = write_rows(tmp_path / "run", rows, end=b'{"kind": "tra')
    checkpoint(run, 300)
    (run / "checkpoints" / "best").write_text("step-0000300\n")
    found = summary(run, later=100)
    assert (found.state, found.step, found.total_steps) == ("stopped", 400, 1000)
    assert found.training["loss"].direction == "steady"
    assert (found.held_out["auroc"].change, found.held_out_step) == (pytest.approx(-0.1), 400)
    assert {name: (best.value, best.step) for name, best in found.best.items()} == {
        "loss": (0.3, 200),
        "auroc": (0.9, 200),
    }
    assert (found.speed.tokens, found.speed.tokens_median) == (40_000, 20_250)
    assert (found.seconds_left, found.expected_end) == (600, None)  # time does not run out while it is stopped
    assert (found.checkpoint.name, found.checkpoint.time, found.best_checkpoint) == (
        "step-0000300",
        NOW - 60,
        "step-0000300",
    )
    assert found.resume == f"torchrun --nproc-per-node 8 -m pqm_fast train --config {run}/config.yaml --resume"
    assert found.health.warnings == []
    with locked(run, "train", folder=True):
        os.utime(run / "metrics.jsonl", (NOW, NOW))
        found = summary(run, later=100)
        assert (found.state, found.seconds_left, found.expected_end) == ("running", 500, NOW + 600)
        assert summary(run, later=9000).seconds_left == 0
        assert found.resume is None


def test_health(tmp_path):
    skipped = [
        {"kind": "skipped", "step": 290 + i, "reason": reason, "records": ["r1"]}
        for i, reason in enumerate(("spike", "spike", "not finite"))
    ]
    rows = [START, *(train_row(step) for step in range(10, 291, 10)), *skipped]
    rows.append(train_row(300, grad_norm=50.0, peak_memory_gb=3.5))
    healthy = summary(write_rows(tmp_path / "run", rows)).health
    assert (healthy.skipped, healthy.last_skipped) == ({"spike": 2, "not finite": 1}, 292)
    assert (healthy.grad_norm, healthy.grad_norm_median, healthy.peak_memory_gb) == (50, 2, 3.5)
    assert healthy.warnings == [
        "the gradient norm is 25 times its median",
        "3 of the last 30 steps were left out",
    ]
    rows.append(train_row(310, loss=float("nan")))
    run = write_rows(tmp_path / "run", rows)
    (checkpoint(run, 200) / "weights.safetensors").unlink()
    checkpoint(run, 100)
    found = summary(run)
    assert found.health.not_finite == 1
    assert found.training["loss"].last == 1.0
    assert found.checkpoint.name == "step-0000100"
    assert found.health.warnings[0].startswith("step-0000200 is incomplete: weights.safetensors is missing")


# ---- state ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of `run`, a folder with two rows."""
    run = write_rows(tmp_path / "run", [START, train_row(10)])
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        with locked(run, "train", folder=True):
            os.write(tell, b"1")
            time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    os.utime(run / ".lock", (NOW, NOW))
    yield run, child
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except ProcessLookupError:
        pass


def test_a_run_that_is_running_and_one_that_was_killed(holder, monkeypatch):
    run, child = holder
    found = summary(run, later=5)
    assert found.state == "running"
    assert found.holder.pid == child
    assert found.reason.startswith(f"`pqm-fast train` (process {child} on ")
    late = summary(run, later=2 * state.LONG)
    assert late.state == "running"  # on this machine the lock is certain
    assert late.health.warnings == ["no file was changed for 2.0 h"]
    with monkeypatch.context() as patch:
        patch.setattr(state.socket, "gethostname", lambda: "elsewhere")
        assert summary(run, later=5).state == "running"
        assert summary(run, later=2 * state.LONG).state == "unknown"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (run / ".lock").exists()
    assert summary(run, later=5).state == "stopped"
    monkeypatch.setattr(state.socket, "gethostname", lambda: "elsewhere")
    assert summary(run, later=5).state == "unknown"  # its machine may hold a lock that is not seen here
    assert summary(run, later=2 * state.LONG).state == "stopped"


def test_without_locks_the_last_change_decides(holder, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("pqm_fast.common.lock.fcntl.flock", no_locks)
    assert summary(holder[0], later=5).state == "running"
    assert summary(holder[0], later=2 * state.LONG).state == "unknown"


def test_a_run_that_ended_before_its_first_step(tmp_path):
    (tmp_path / "config.yaml").write_text("model: m\n")
    found = summary(tmp_path)
    assert (found.state, found.step, found.total_steps) == ("failed to start", 0, None)


def test_folders_that_are_no_runs(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "study").mkdir()
    run = write_rows(tmp_path / "run", [START])
    with locked(tmp_path / "study", "study", folder=True):
        paths = [str(tmp_path / name) for name in ("empty", "file", "missing", "study")]
        assert main(["status", str(run), *paths]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    for path, problem in zip(paths, ("not a run", "a file", "no such folder", "not a run"), strict=True):
        assert f"{path}: {problem}" in said.err
    assert str(run) not in said.err
    assert main(["status"]) == 2


# ---- beside a real run ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run that was watched after each of its rows: (its folder, what status --json said)."""
    folder = tmp_path_factory.mktemp("watched")
    tiny.model_folder(folder / "model", num_hidden_layers=1)
    config = TrainConfig(
        model=str(folder / "model"),
        data=(tiny.write_data(folder / "data.jsonl"),),
        out=str(folder / "run"),
        cache_dir=str(folder / "cache"),
        template=Template(step_token="last"),
        **{"micro_batch_tokens": 128, "max_length": 64, "max_steps": 4, "log_every": 1, "eval_every": 2},
        **{"save_every": 2, "eval_fraction": 0.2, "device": "cpu", "progress": False},
    )
    seen = []
    append = RunLog._append

    def watch(self, row):
        append(self, row)
        seen.append(summarise(read_run(config.folder), time.time()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "_append", watch)
        train(config)
    return config.folder, seen


def test_a_real_run_while_it_writes(watched):
    run, seen = watched
    assert [found.state for found in seen] == ["running"] * 7  # a start, four steps, two evaluations
    assert [found.step for found in seen] == [0, 1, 2, 2, 3, 4, 4]
    assert {found.total_steps for found in seen} == {4}
    assert {found.holder.pid for found in seen} == {os.getpid()}
    assert seen[0].seconds_left is None
    assert seen[0].start["trajectories"] + seen[0].start["held_out"] == 120
    assert all(found.seconds_left > 0 for found in seen[1:-1])
    assert [found.checkpoint is None for found in seen] == [True] * 4 + [False] * 3
    assert summarise(read_run(run), time.time()).state == "finished"


def test_it_is_quick_and_changes_nothing(watched):
    """Neither torch nor numpy is loaded, and every file is as before."""
    run, _ = watched

    def files():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in (run, *run.rglob("*"))}

    before = files()
    code = (
        f"import sys; from pqm_fast.cli import main\ncode = main(['status', {str(run)!r}])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{run}: finished (the last file was changed ")
    for text in ("on ", "step 4 of 4 (100.0%)", "loss ", "AUROC 0.", "tokens/s", "gradient norm ", "step-0000004, "):
        assert text in done.stdout
    assert "resume " not in done.stdout
    assert files() == before


def test_json(watched, tmp_path, capsys):
    run, _ = watched
    broken = write_rows(tmp_path / "broken", [{**START, "note": float("nan")}, train_row(10)])
    assert main(["status", str(run), str(broken), "--json"]) == 0
    finished, stopped = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (finished["state"], finished["step"], finished["resume"]) == ("finished", 4, None)
    assert finished["held_out"]["auroc"]["last"] == json.loads((run / "metrics.json").read_text())["auroc"]
    assert (stopped["state"], stopped["training"]["loss"]["last"], stopped["start"]["note"]) == ("stopped", 1.0, None)
