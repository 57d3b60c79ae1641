"""Figures of a run in TensorBoard, Weights & Biases and Trackio: their stand-ins, and the real ones where installed."""

import json
import re
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from tracker_stand_ins import stand_in
from untimed import untimed

from pqm_fast.common.options import flat
from pqm_fast.common.signals import Stopped
from pqm_fast.errors import PQMError
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.log import RunLog
from pqm_fast.train.loop import train
from pqm_fast.train.metrics_file import read_metrics, read_starts
from pqm_fast.train.tracking import LIBRARIES, TRACKERS, Trackers, check_libraries

NAMES = list(TRACKERS)
OPTIONS = {"max_steps": 6, "eval_every": 2, "eval_fraction": 0.2, "save_every": 4}


def figures(run: Path, kind: str) -> dict[int, dict[str, float]]:
    """The numbers in the rows of metrics.jsonl, by step, as a tracker shows them."""
    return {
        row["step"]: {
            f"{kind}/{name}": value for name, value in row.items() if name not in ("kind", "step") and value is not None
        }
        for row in read_metrics(run / "metrics.jsonl")
        if row["kind"] == kind
    }


def by_step(logged: list[tuple[int, dict[str, float]]], kind: str) -> dict[int, dict[str, float]]:
    """The last scalars of each step."""
    steps: dict[int, dict[str, float]] = {}
    for step, scalars in logged:
        own = {name: value for name, value in scalars.items() if name.startswith(f"{kind}/")}
        steps[step] = steps.get(step, {}) | own
    return {step: scalars for step, scalars in steps.items() if scalars}


def train_until(step: int, config: TrainConfig) -> None:
    """The run is stopped, as by a signal, after a row of `step`."""
    write = RunLog.write

    def stopping(self, kind, at, row):
        write(self, kind, at, row)
        if at == step:
            raise Stopped(15)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "write", stopping)
        with pytest.raises(Stopped):
            train(config)


def test_every_tracker_can_be_named():
    [choices, _] = get_args(get_type_hints(TrainConfig)["track"])
    assert list(get_args(choices)) == NAMES == list(LIBRARIES)


@pytest.mark.parametrize("name", NAMES)
def test_all_figures_arrive_and_a_resumed_run_continues(configure, tmp_path, monkeypatch, name):
    tracked = stand_in(name, monkeypatch)
    options = OPTIONS | {"track": (name, name), "track_project": "mine"}
    config = configure(**options)
    train_until(5, config)
    train(configure(**options, resume=True))
    run = tmp_path / "run"
    for kind, steps in (("train", range(1, 7)), ("eval", (2, 4, 6))):
        assert by_step(tracked.logged, kind) == figures(run, kind)
        assert list(figures(run, kind)) == list(steps)
    first, second = tracked.starts
    options = flat(config.to_store())
    if name == "tensorboard":
        assert (first["log_dir"], first["purge_step"], second["purge_step"]) == (str(run / "tensorboard"), None, 5)
        sent = first["summaries"][0]
        assert first["summaries"][1:] == ["start", "end"]
    else:
        identity = json.loads((run / "tracking.json").read_text())["id"]
        assert re.fullmatch(r"run-[0-9a-f]{8}", identity)
        assert first == second
        assert (first["project"], first["resume"]) == ("mine", "allow")
        assert first["id" if name == "wandb" else "name"] == identity
        sent = first["config"]
    assert sent.keys() == options.keys()
    assert (sent["zeta"], sent["template.step_token"]) == (4.0, "last")
    assert tracked.ended == ([1, 0] if name == "wandb" else [None, None])
    assert [row["step"] for row in read_starts(run / "metrics.jsonl")] == [0, 4]


@pytest.mark.fault(
    "a tracker (--track) fails while a training runs: no network, a full disk",
    how="the library raises an error in a step, at the end, or at the start of a resumed run",
    lost="what the tracker would have shown; metrics.jsonl has every figure",
    recovers="one message, and the training goes on; `train --resume` tries the tracker again",
)
@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_fails_is_reported_once(configure, tmp_path, monkeypatch, capsys, name):
    tracked = stand_in(name, monkeypatch)
    tracked.fails_at = 3
    train(configure(**OPTIONS, track=(name,)))
    said = capsys.readouterr().out
    assert said.count(f"{name} failed at step 3 (ConnectionError: no route to host): the run goes on") == 1
    assert said.count("ConnectionError") == 1
    assert max(step for step, _ in tracked.logged) == 2
    train(configure("plain", **OPTIONS))
    assert untimed(tmp_path / "run" / "metrics.jsonl") == untimed(tmp_path / "plain" / "metrics.jsonl")
    tracked.fails_to_start = True
    train(configure(**(OPTIONS | {"max_steps": 7}), track=(name,), resume=True))
    assert f"{name} could not be started (ConnectionError: no route to host): the run goes" in capsys.readouterr().out


def test_a_step_that_was_left_out_is_told_and_not_tracked(configure, tmp_path, monkeypatch, capsys):
    tracked = stand_in("wandb", monkeypatch)
    begin = RunLog.begin

    def begin_badly(self, *arguments):
        begin(self, *arguments)
        self.write("skipped", 1, {"reason": "spike", "loss": "9.0", "records": [f"r{i}" for i in range(9)]})
        self.write("skipped", 2, {"reason": "not finite", "loss": "nan", "records": []})

    monkeypatch.setattr(RunLog, "begin", begin_badly)
    train(configure(max_steps=2, eval_fraction=0, track=("wandb",)))
    said = capsys.readouterr().out.splitlines()
    assert "step 1: left out (spike); records: r0, r1, r2, r3, r4" in said
    assert "step 2: left out (not finite)" in said
    assert [step for step, _ in tracked.logged] == [1, 2]
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["kind"] for row in rows] == ["skipped", "skipped", "train", "train"]


def test_a_tracker_that_fails_at_the_end(monkeypatch):
    said: list[str] = []
    trackers = Trackers(said.append)
    closed = []

    class Failing:
        def close(self, complete):
            raise OSError(28, "No space left on device")

    class Stopping:
        def close(self, complete):
            raise Stopped(2)

    class Working:
        def close(self, complete):
            closed.append(complete)

    trackers.open = {"tensorboard": Failing(), "wandb": Working()}
    trackers.close(complete=True)
    assert closed == [True]
    assert [text[:60] for text in said] == ["tensorboard failed at the end (OSError: [Errno 28] No space l"[:60]]
    trackers.open = {
        "wandb": type("Stopping", (), {"close": lambda self, complete: (_ for _ in ()).throw(Stopped(2))})()
    }
    with pytest.raises(Stopped):  # a signal is no failure of the tracker
        trackers.close(complete=True)


def test_a_new_run_needs_its_trackers(configure, tmp_path, monkeypatch):
    stand_in("trackio", monkeypatch).fails_to_start = True
    with pytest.raises(PQMError, match=r"track: trackio could not be started \(ConnectionError: no route to host\)"):
        train(configure(**OPTIONS, track=("trackio",)))
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == []
    assert train(configure(**OPTIONS, resume=True))  # as the message says


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_library_is_named_before_anything_is_written(configure, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, LIBRARIES[name], None)  # Python treats None as "not found"
    with pytest.raises(
        PQMError, match=rf"^track: {name} cannot be imported \(.+\); install it with: pip install {name}$"
    ):
        train(configure(track=(name,)))
    assert not (tmp_path / "run").exists()


def test_a_damaged_identity_is_named(configure, tmp_path, monkeypatch, capsys):
    tracked = stand_in("wandb", monkeypatch)
    train(configure(**OPTIONS, track=("wandb",)))
    (tmp_path / "run" / "tracking.json").write_text('{"id": 7}')
    train(configure(**(OPTIONS | {"max_steps": 7}), track=("wandb",), resume=True))
    assert "tracking.json: damaged, so trackers show what follows as a new run" in capsys.readouterr().out
    assert tracked.starts[0]["id"] != tracked.starts[1]["id"]


@pytest.mark.parametrize("name", NAMES)
def test_the_real_libraries(configure, tmp_path, monkeypatch, name):
    """Offline. What TensorBoard and Trackio stored is read back; W&B has no reader for its file."""
    pytest.importorskip(name)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_libraries([name])
    train_until(5, configure(**OPTIONS, track=(name,)))
    train(configure(**OPTIONS, track=(name,), resume=True))
    run = tmp_path / "run"
    logged = []
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(run / "tensorboard"))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            logged += [(event.step, {tag: event.value}) for event in events.Scalars(tag)]
        assert len({(step, *scalars) for step, scalars in logged}) == len(logged)  # repeated steps are hidden
        assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
    elif name == "trackio":
        from trackio.sqlite_storage import SQLiteStorage

        identity = json.loads((run / "tracking.json").read_text())["id"]
        for row in SQLiteStorage.get_logs("pqm-fast", identity):
            logged.append((row["step"], {tag: value for tag, value in row.items() if "/" in tag}))
    else:
        assert len(list((run / "wandb").glob("offline-run-*/*.wandb"))) == 2
        return
    for kind in ("train", "eval"):
        found, expected = by_step(logged, kind), figures(run, kind)
        assert found.keys() == expected.keys()
        for step, scalars in expected.items():
            assert found[step] == pytest.approx(scalars, rel=1e-6)  # TensorBoard keeps float32
