"""`python -m pqm_benchmarks gpu`: stages in processes of their own, what they keep, and what is told of them.

The command itself runs at tiny sizes in .ci/run.
"""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pqm_benchmarks.__main__ import main
from pqm_benchmarks.gpu import check, counters, profile, run, speed, stages, tests, tiles
from pqm_benchmarks.gpu.job import Job
from pqm_benchmarks.gpu.run import Request
from pqm_benchmarks.gpu.stages import LISTS, MINUTES, Stage
from pqm_benchmarks.gpu.summary import text
from pqm_benchmarks.score_ways import WAYS as SCORE_WAYS
from pqm_benchmarks.shapes import EVERY
from pqm_benchmarks.train_step.ladder import WAYS
from pqm_kernels import backward, forward
from torch.autograd import DeviceType

from pqm_fast.environment import COMMIT, describe
from pqm_fast.errors import PQMError

CPU = torch.device("cpu")
HERE = Path(__file__).parent


def summary_of(out):
    return json.loads((out / "summary.json").read_text())


# ---- stages and limits ----------------------------------------------------------------------------------------------


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Call with names of `gpu_stages.py`, and seconds for each: (exit code, rows by name)."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))

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


@pytest.mark.parametrize("name", ["hangs", "hangs_on"])
def test_what_hangs_is_ended_with_all_that_it_started(start, monkeypatch, name):
    monkeypatch.setattr(run, "GRACE", 0.5)
    code, rows = start(name, "passes", seconds=8)
    assert code == 1
    row = rows[name]
    assert (row["status"], row["why"]) == ("timed out", "not finished after 8 s")
    assert row["figures"]["headline"] in ("before it hung", "will not end")
    assert row["seconds"] < 12
    if name == "hangs":
        assert not is_running(row["figures"]["child"])


def test_what_a_stage_leaves_of_its_time_the_next_may_have(start):
    code, rows = start("has_nothing_to_do", "passes", seconds=30)
    assert code == 0
    assert rows["has_nothing_to_do"]["limit"] == pytest.approx(30, abs=0.5)
    left = 60 - rows["has_nothing_to_do"]["seconds"]
    assert rows["passes"]["limit"] == pytest.approx(left, abs=1.5)


@pytest.mark.parametrize("name", LISTS)
def test_a_list_fits_the_minutes_that_it_is_for(name):
    together = sum(stage.seconds for stage in LISTS[name])
    assert together <= {"first": 480, "second": 200}[name] < 60 * MINUTES[name]["cuda"]
    assert sum(stage.cpu_seconds for stage in LISTS[name]) <= 60 * MINUTES[name]["cpu"]


def test_every_stage_has_its_work():
    for stage in {stage for own in LISTS.values() for stage in own}:
        module, _, function = stage.work.partition(":")
        found = {"check": check, "tests": tests, "speed": speed, "tiles": tiles, "profile": profile}
        name = module.rpartition(".")[2]
        if name in found:
            assert callable(getattr(found[name], function))
        else:
            assert (Path(stages.__file__).parent / f"{name}.py").exists()


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
        "try: main(['gpu', '--help'])\n"
        "except SystemExit as exit: assert exit.code == 0\n"
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


# ---- tests on the card ----------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path):
    return Job("cpu", tmp_path, tmp_path / "report.json")


def stored(job):
    return json.loads(job.report.read_text())


@pytest.fixture
def suite(monkeypatch, tmp_path):
    """A checkout whose tests are these."""
    folder = tmp_path / "checkout" / "tests"
    folder.mkdir(parents=True)
    (folder / "test_some.py").write_text(
        "import pytest\n"
        "def test_right(): pass\n"
        "def test_wrong(): assert 1 == 2, 'not alike'\n"
        "@pytest.mark.skip(reason='no')\n"
        "def test_left_out(): pass\n"
        "@pytest.fixture\n"
        "def broken(): raise RuntimeError('no fixture')\n"
        "def test_without_its_fixture(broken): pass\n"
    )
    (folder / "test_right.py").write_text("def test_a(): pass\n")
    (folder / "test_broken.py").write_text("import nowhere_at_all\n")
    monkeypatch.setattr(tests, "ROOT", folder.parent)
    return folder


@pytest.mark.parametrize("processes", [0, 2])
def test_outcomes_are_counted_and_failures_told_by_name(job, suite, processes):
    with pytest.raises(PQMError, match=r"^2 failed$"):
        tests._run(job, ((["tests/test_some.py"], processes), (["tests/test_right.py"], 0)))
    figures = stored(job)["figures"]
    assert (figures["passed"], figures["failed"], figures["skipped"]) == (2, 2, 1)
    assert figures["headline"] == "2 passed, 2 failed, 1 skipped"
    assert figures["failures"].keys() == {
        "tests/test_some.py::test_wrong", "tests/test_some.py::test_without_its_fixture",
    }  # fmt: skip
    assert "not alike" in figures["failures"]["tests/test_some.py::test_wrong"]
    assert figures["unfinished"] == 0


def test_failures_run_again_by_name(job, suite):
    earlier = suite.parent / "earlier"
    earlier.mkdir()
    failed = {"tests/test_some.py::test_right": "was wrong once"}
    (earlier / "summary.json").write_text(json.dumps([{"figures": {}}, {"figures": {"failures": failed}}]))
    job.earlier = earlier
    tests.again(job)
    assert stored(job)["figures"]["headline"] == "1 passed, 0 failed, 0 skipped"
    (earlier / "summary.json").write_text(json.dumps([{"figures": {"failures": {}}}]))
    assert job.do("pqm_benchmarks.gpu.tests:again") == 0
    assert (stored(job)["status"], stored(job)["why"]) == ("skipped", "no test had failed")


def test_tests_that_cannot_be_collected_are_failures(job, suite):
    with pytest.raises(PQMError, match="1 failed; pytest ended with exit code 2"):
        tests._run(job, ((["tests/test_broken.py"], 0),))
    assert "nowhere_at_all" in stored(job)["figures"]["failures"]["tests/test_broken.py"]


def test_a_crash_loses_one_test(job, suite):
    cases = "".join(f"def test_{i}(): pass\n" for i in range(20))
    (suite / "test_crash.py").write_text(f"import os\ndef test_crash(): os._exit(9)\n{cases}")
    with pytest.raises(PQMError, match=r"^1 failed$"):
        tests._run(job, ((["tests/test_crash.py"], 2),))
    figures = stored(job)["figures"]
    assert figures["passed"] == 20
    assert "crashed" in figures["failures"]["tests/test_crash.py::test_crash"]


def test_no_tests_is_a_failure(job, suite):
    with pytest.raises(PQMError, match="pytest ended with exit code 5"):
        tests._run(job, ((["tests/test_right.py", "-k", "nothing"], 0),))


def test_what_is_chosen_is_there():
    for arguments, _ in (tests.KERNELS, tests.NEED_GPU, *tests.ON_CPU):
        assert all((tests.ROOT / name).exists() for name in arguments if name.startswith("tests"))


# ---- check ----------------------------------------------------------------------------------------------------------


def test_the_op_and_attention_are_held_against_float64():
    for compare in (check._op, check._attention_in_trees):
        for what, ours, plain, exact in compare(CPU, torch.float32):
            assert exact.dtype == torch.float64, what
            assert ours.dtype == plain.dtype == torch.float32, what
            assert check._error(ours, exact) <= 1e-5, what


def test_what_is_wrong_is_told(job, monkeypatch):
    def comparison(error):
        exact = torch.tensor([3.0, 4.0], dtype=torch.float64)
        yield "value", exact * (1 + error), exact * 1.001, exact

    for name, error in (("_op", 0.0019), ("_adamw", 0.0021), ("_attention", 0), ("_attention_in_trees", float("nan"))):
        monkeypatch.setattr(check, name, lambda device, dtype, error=error: comparison(error))
    with pytest.raises(PQMError) as raised:
        check.check(job)
    assert str(raised.value) == (
        "AdamW, value: error 0.0021, allowed 0.002; attention in trees, value: error nan, allowed 0.002"
    )
    figures = stored(job)["figures"]
    assert figures["headline"] == "on a CPU; 2 of 4 results right"
    assert figures["environment"].keys() >= {"device", "versions", "commit"}
    assert figures["rates"].keys() >= {"copy_gb_s", "matrix_tflops"}


# ---- sizes that are given -------------------------------------------------------------------------------------------


def test_settings_are_some_that_the_ways_have():
    for shape, settings in speed.TRAIN.items():
        assert shape in EVERY
        for name, setting in settings.items():
            kinds = {frozenset(known) for family in WAYS[name].families for known in family}
            assert frozenset(setting) in kinds, (shape, name)
    for name, setting in speed.SCORE.items():
        assert any(setting in family for family in SCORE_WAYS[name].families)


def test_a_given_setting_is_timed_and_none_is_looked_for(tmp_path, job, monkeypatch):
    monkeypatch.setattr(speed, "TRAIN", {"tiny": {name: speed.TRAIN["tiny"][name] for name in ("packed", "tree")}})
    way = WAYS["packed"]

    def wrong(*arguments):
        step = way.build(*arguments)
        with torch.no_grad():
            step.model.head.bias += 10.0
        return step

    speed.train_half(job)
    results = json.loads((tmp_path / "train-0.5B.json").read_text())
    assert [(r["way"], r["setting"], r["tried"]) for r in results["records"]] == [
        ("packed", {"micro_batches": 1, "recompute": 0.0}, []), ("tree", {"micro_batches": 1, "recompute": 0.0}, []),
    ]  # fmt: skip
    assert results["records"][0]["optimizer_steps"] == 1
    assert stored(job)["figures"]["headline"].startswith("trajectories/s: plain packing ")
    assert stored(job)["figures"]["left_out"] == {}
    monkeypatch.setitem(WAYS, "packed", replace(way, build=wrong))
    with pytest.raises(PQMError, match=r"^tree: its loss is .*, where .* was expected; it is not timed"):
        speed.train_half(job)
    assert stored(job)["figures"]["left_out"].keys() == {"tree, tiny"}


def test_settings_need_passes_of_one_step():
    from pqm_benchmarks.train import TrainBench, measure

    with pytest.raises(PQMError, match="steps: must be 1 where settings are given, found 3"):
        measure(TrainBench(device="cpu"), lambda _: None, {})


def test_a_fused_op_that_is_left_out_is_a_failure(job, monkeypatch):
    results = {"records": [1], "copy_gb_s": 3.0, "left_out": {"compiled, rank": "slow", "fused, rank": "off by 3"}}

    def measure(config, store):
        store(results)
        return results

    monkeypatch.setattr(speed.kernel_bench, "measure", measure)
    with pytest.raises(PQMError, match=r"^fused, rank: off by 3$"):
        speed.kernels(job)
    assert stored(job)["figures"]["left_out"] == results["left_out"]
    results["left_out"] = {"compiled, rank": "slow"}
    speed.kernels(job)


# ---- second looks ---------------------------------------------------------------------------------------------------


def test_shares_of_a_profile_by_hand():
    """Between 10 and 20 us of 40 nothing runs; two kernels overlap for 5 us."""
    found = profile.figures(
        [("gemm", 0.0, 10.0), ("flash_fwd_kernel", 20.0, 30.0), ("gemm", 25.0, 35.0), ("copy", 35.0, 40.0)]
    )
    assert found == {
        "wall_us": 40.0, "idle": pytest.approx(0.25), "attention": pytest.approx(10 / 35), "kernels": 4,
        "longest": [["gemm", 20 / 35], ["flash_fwd_kernel", 10 / 35], ["copy", 5 / 35]],
    }  # fmt: skip
    with pytest.raises(PQMError, match="seen no kernel"):
        profile.figures([])


def test_only_what_runs_on_the_gpu_is_counted_there():
    def event(name, kind, start, end, children=()):
        span = SimpleNamespace(start=start, end=end)
        return SimpleNamespace(name=name, device_type=kind, time_range=span, cpu_children=children)

    events = [event("mm", DeviceType.CPU, 0, 9), event("linear", DeviceType.CPU, 0, 9, [1])]
    events.append(event("gemm", DeviceType.CUDA, 4, 8))
    assert profile.spans(events, on_gpu=True) == [("gemm", 4, 8)]
    assert profile.spans(events, on_gpu=False) == [("mm", 0, 9)]


def test_other_tiles_are_put_back(job, monkeypatch):
    before = {module: dict(vars(module)) for module in (forward, backward)}
    seen = {}

    def times(inputs, device):
        now = [(m, name) for m in before for name, value in before[m].items() if vars(m)[name] is not value]
        seen[len(seen)] = {name for _, name in now}
        if len(seen) == 3:
            raise RuntimeError("out of shared memory")
        return {"forward": 1.0, "forward+backward": 4.0 - len(seen) / 2}

    monkeypatch.setattr(tiles, "_times", times)
    tiles.tiles(job)
    changed = [{name for own in changes.values() for name in own} for changes in tiles.VARIANTS.values()]
    assert list(seen.values()) == changed
    assert all(vars(module)[name] is value for module, own in before.items() for name, value in own.items())
    figures = stored(job)["figures"]
    variants = list(tiles.VARIANTS)
    assert figures["left_out"] == {f"tiny, D 64, {variants[2]}": "RuntimeError: out of shared memory"}
    assert figures["headline"] == f"4 cases, best tiny, D 64, {variants[-1]} (2.33x)"


def test_variants_change_constants_that_the_kernels_have():
    for changes in tiles.VARIANTS.values():
        for module, own in changes.items():
            for name, value in own.items():
                assert type(getattr(module, name)) is type(value)
                assert getattr(module, name) != value


def test_counters_are_read_from_what_ncu_prints():
    head = '"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"'
    lines = [
        "==PROF== Connected to process 7", head,
        '"0","7","forward_kernel(...)","GPU Speed Of Light","DRAM Throughput","%","91.20"',
        '"0","7","forward_kernel(...)","GPU Speed Of Light","Duration","us","180.5"',
        '"0","7","forward_kernel(...)","GPU Speed Of Light","SM Frequency","GHz","1.9"',
        '"1","7","rows_kernel","Launch Statistics","Registers Per Thread","register/thread","96"',
    ]  # fmt: skip
    assert counters.read("\n".join(lines)) == {
        "forward_kernel": {"DRAM Throughput": "91.20 %", "Duration": "180.5 us"},
        "rows_kernel": {"Registers Per Thread": "96 register/thread"},
    }
    assert counters.read("==ERROR== no permission") == {}
    for name, kernel in (("forward_kernel", forward), ("rows_kernel", backward)):
        assert name in counters.KERNELS
        assert hasattr(kernel, name)
