"""`python -m pqm_benchmarks gpu`: stages in processes of their own, what they keep, and what is told of them.

The command itself runs at tiny sizes in .ci/run.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pqm_benchmarks.__main__ import main
from pqm_benchmarks.gpu import run
from pqm_benchmarks.gpu.run import Request
from pqm_benchmarks.gpu.stages import LISTS, MINUTES, Stage
from pqm_benchmarks.gpu.summary import text

from pqm_fast.common.environment import COMMIT, describe

HERE = Path(__file__).parent


def summary_of(out):
    return json.loads((out / "summary.json").read_text())


# ---- stages and limits ----------------------------------------------------------------------------------------------


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Call with names of `gpu_stages.py`, and seconds for each: (exit code, rows by name)."""
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)

    def run_them(*names, seconds=60, **options):
        made = tuple(Stage(name, f"what {name} is", f"gpu_stages:{name}", 1, seconds) for name in names)
        monkeypatch.setitem(LISTS, "first", made)
        code = run.run(Request(out=tmp_path / "out", device="cpu", minutes=MINUTES["first"]["cpu"], **options))
        return code, {row["name"]: row for row in summary_of(tmp_path / "out")}

    return run_them


def test_a_stage_that_fails_never_stops_the_next(start, tmp_path, capsys):
    code, rows = start("is_wrong", "breaks", "dies", "has_nothing_to_do", "passes", commit="abc1234")
    assert code == 1
    assert [(row["name"], row["status"]) for row in rows.values()] == [
        ("is_wrong", "failed"), ("breaks", "failed"), ("dies", "failed"), ("has_nothing_to_do", "skipped"),
        ("passes", "passed"),
    ]  # fmt: skip
    assert rows["is_wrong"]["why"] == "the op\nis wrong"
    assert rows["breaks"]["why"] == "ValueError: unexpected"
    assert rows["dies"]["why"] == "ended with exit code 7: see log.txt"
    assert rows["dies"]["figures"] == {"headline": "so far"}
    assert rows["has_nothing_to_do"]["why"] == "no tool"
    figures = {"headline": "whole", "first": 1, "device": "cpu", "commit": "abc1234", "earlier": "None"}
    assert (rows["passes"]["figures"], rows["passes"]["why"]) == (figures, None)
    assert all(0 < row["seconds"] <= row["limit"] for row in rows.values())
    log = (tmp_path / "out" / "log.txt").read_text()
    places = [log.index(f"==== {name}: what {name} is") for name in rows]
    assert places == sorted(places)
    assert places[1] < log.index("ValueError: unexpected") < places[2]
    assert log.endswith("said to the log\n")
    assert "Traceback" not in log[places[3] :]  # to have nothing to do is no error
    told = capsys.readouterr().out
    assert "is_wrong           failed" in told
    assert "the op is wrong" in told
    assert "speed   >= 2x        1x  NOT MET" in told
    assert "left out: another: out of memory" in told


def is_running(process):
    """In a second or so: it may just be about to end."""
    for _ in range(20):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if state == "Z":  # ended, and nobody has asked how
            return False
        time.sleep(0.1)
    return True


def test_what_hangs_is_ended_with_all_that_it_started(start, monkeypatch):
    monkeypatch.setattr(run, "GRACE", 0.5)
    code, rows = start("hangs", "hangs_on", "has_nothing_to_do", seconds=3)
    assert code == 1
    for name, headline in (("hangs", "before it hung"), ("hangs_on", "will not end")):
        row = rows[name]
        assert (row["status"], row["why"][:18]) == ("timed out", "not finished after")
        assert row["figures"]["headline"] == headline
        assert row["seconds"] < 10
    assert not is_running(rows["hangs"]["figures"]["child"])
    assert rows["has_nothing_to_do"]["status"] == "skipped"


def test_what_a_stage_leaves_of_its_time_the_next_may_have(start):
    code, rows = start("has_nothing_to_do", "is_wrong", seconds=30)
    assert code == 1
    assert rows["has_nothing_to_do"]["limit"] == pytest.approx(30, abs=0.5)
    left = 60 - rows["has_nothing_to_do"]["seconds"]
    assert rows["is_wrong"]["limit"] == pytest.approx(left, abs=1.5)


@pytest.mark.parametrize("name", LISTS)
def test_a_list_fits_the_minutes_that_it_is_for(name):
    together = sum(stage.seconds for stage in LISTS[name])
    assert together <= {"first": 480, "second": 220}[name] < 60 * MINUTES[name]["cuda"]
    assert sum(stage.cpu_seconds for stage in LISTS[name]) <= 60 * MINUTES[name]["cpu"]


def test_every_stage_has_its_work():
    for stage in {stage for own in LISTS.values() for stage in own}:
        module, _, function = stage.work.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_a_folder_that_is_not_empty_is_refused(tmp_path, capsys):
    (tmp_path / "summary.json").write_text("[]")
    assert main(["gpu", "--out", str(tmp_path), "--device", "cpu"]) == 1
    assert "is there already, and not an empty folder" in capsys.readouterr().err
    assert (tmp_path / "summary.json").read_text() == "[]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stages", "check", "nope"], "stages: expected some of check, tests, kernels, "),
        (["--minutes", "0"], "minutes: must be positive, found 0"),
        (["--minutes", "nan"], "minutes: must be positive, found nan"),
        (["--earlier", "/nowhere"], "/nowhere: holds no summary.json of an earlier run"),
    ],
)
def test_options_that_make_no_sense(tmp_path, capsys, options, message):
    assert main(["gpu", "--out", str(tmp_path / "out"), "--device", "cpu", *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_lists_the_stages_and_needs_no_heavy_package():
    code = (
        "import sys; from pqm_benchmarks.__main__ import main\n"
        "assert main(['gpu', '--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'triton', 'tyro'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    for stage in (stage for own in LISTS.values() for stage in own):
        assert f"{stage.name:<14} {stage.what}" in done.stdout


def test_the_commit_can_be_told(monkeypatch):
    monkeypatch.setenv(COMMIT, "0123abc")
    assert describe()["commit"] == "0123abc"
    monkeypatch.delenv(COMMIT)
    assert describe()["commit"] != "0123abc"


def test_the_summary_is_short():
    row = {"name": "kernels", "seconds": 80.0, "status": "passed", "why": None}
    figures = {
        "headline": "word " * 100,
        "targets": [["target", ">= 1x", "2x", "met"]] * 2,
        "left_out": {f"case {i}": "why " * 100 for i in range(50)},
        "failures": {f"tests/test_{i}.py::test": "Traceback\n" * 50 for i in range(50)},
    }
    shown = text([row | {"figures": figures}] * 7).splitlines()
    assert len(shown) <= 40
    assert max(map(len, shown)) <= 190
    assert sum(line.startswith("failed: ") for line in shown) == 7
    assert "344 more, in summary.json" in shown[-1]
