"""The demo, shortened: the whole path from the world to the table, the picture and the report."""

import json
import re
import shlex
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from pqm_fast.arithmetic.demo import _report_command
from pqm_fast.arithmetic.demo_results import FIGURES, results_table
from pqm_fast.cli import main
from pqm_fast.data import read_records

SHORT = "--steps 2 --problems 20 --test-problems 2 --micro-batch-tokens 256 --no-progress"
LOSSES = ("bce+sibling", "rank")
RUNS = ("bce+sibling-seed0", "bce+sibling-seed1", "rank-seed0", "rank-seed1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("a demo") / "demo"


@pytest.fixture(scope="module")
def printed(folder):
    """What a demo of two losses and two seeds prints. The pictures of its runs would take longer than the rest."""
    with redirect_stdout(StringIO()) as out, pytest.MonkeyPatch.context() as patch:
        patch.setattr("pqm_fast.train.loop.draw_curve", lambda folder: None)
        patch.setattr("pqm_fast.evaluate.pictures.draw", lambda results, out: [])
        assert main(["demo", "--out", str(folder), *f"--seeds 0 1 {SHORT}".split()]) == 0
    return out.getvalue()


def test_demo(folder, printed, capsys):
    assert (
        "policy    mean accuracy  majority vote  best of 16, bce+sibling  best of 16, rank  any of 16 right" in printed
    )
    assert f"Best-of-16 against majority vote: {folder / 'best_of_16.png'}" in printed
    assert "Best-of-N:" not in printed  # the table of `evaluate` fills more than a screen
    assert (folder / "best_of_16.png").read_bytes()[:4] == b"\x89PNG"
    stored = json.loads((folder / "result.json").read_text())
    assert stored["versions"]["torch"]
    assert stored["config"]["steps"] == 2
    for loss in LOSSES:
        runs = stored["losses"][loss]["runs"]
        assert [run["seed"] for run in runs] == [0, 1]
        assert list(runs[0]["policies"]) == ["careless", "copy", "facts", "mixed", "sign", "skip", "strong"]
        assert list(runs[0]["policies"]["mixed"]) == list(FIGURES)
        best = [run["policies"]["mixed"]["best_of_16"] for run in runs]
        assert stored["losses"][loss]["policies"]["mixed"]["best_of_16"] == pytest.approx(sum(best) / 2)
        for seed in (0, 1):
            config = json.loads((folder / f"{loss}-seed{seed}" / "config.json").read_text())
            recipe = config["pqm_fast"]
            assert (recipe["loss"], recipe.get("compare")) == (("rank", None) if loss == "rank" else ("bce", "sibling"))
            assert loss == "rank" or recipe["compare_weight"] == 3
    # these figures depend on the pool, not on the model
    assert (
        stored["losses"]["rank"]["policies"]["sign"]["majority_vote"]
        == (stored["losses"]["bce+sibling"]["policies"]["sign"]["majority_vote"])
    )

    assert main(["demo", "--out", str(folder)]) == 1
    assert "is not empty; delete it or choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize("name", RUNS[::3])
def test_each_run_keeps_its_scored_pool_and_their_evaluation(folder, printed, name):
    scored = list(read_records(folder / name / "scored.jsonl"))
    assert len(scored) == 2 * 7 * 16
    assert all(len(r.extra["scores"]) == len(r.labels) == len(r.steps) for r in scored)
    evaluation = json.loads((folder / name / "evaluation.json").read_text())
    assert evaluation["steps"]["trajectories"] == evaluation["overall"]["candidates"] == len(scored)
    loss, seed = name.split("-seed")
    [stored] = [run for run in _losses(folder)[loss]["runs"] if run["seed"] == int(seed)]
    for policy, figures in evaluation["policies"].items():
        assert list(figures["best_of_n"]) == ["min", "last", "mean", "softmin", "prod"]
        assert list(figures["best_of_n"]["min"]) == ["1", "2", "4", "8", "16"]
        assert figures["best_of_n"]["min"]["16"]["mean"] == stored["policies"][policy]["best_of_16"]
        assert figures["best_of_n"]["min"]["1"]["mean"] == pytest.approx(stored["policies"][policy]["mean_accuracy"])


def _losses(folder):
    return json.loads((folder / "result.json").read_text())["losses"]


def test_the_command_at_the_end_makes_a_report_of_every_run(folder, printed):
    command = shlex.split(printed.splitlines()[-1])
    assert Path(command[0]).name == "pqm-fast"
    assert main(command[1:]) == 0
    text = (folder / "report.html").read_text()
    assert re.findall(r'<section id="([^"]+)">', text) == ["runs", "training", "best-of-n", "steps", "solutions"]
    data = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)[0])
    assert sorted(data["runs"]) == sorted(RUNS)
    assert "pool-1" not in data["charts"]  # one pool, so the runs share its charts
    titles = [chart["title"].split(" (")[0] for chart in data["charts"]["pool-0"]]
    assert sorted(titles[1:]) == ["careless", "copy", "facts", "mixed", "sign", "skip", "strong"]
    by_min = [series for series in data["charts"]["pool-0"][0]["series"] if series["label"] == "best by min"]
    assert [[n for n, _ in series["points"]] for series in by_min] == [[1, 2, 4, 8, 16]] * 4
    shown = data["solutions"]["items"]
    assert {solution["run"] for solution in shown} == {0, 1, 2, 3}
    assert all(len(q) == len(s["labels"]) == len(s["steps"]) for s in shown for q in s["q"].values())


def test_the_report_command_is_one_that_the_shell_finds(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "pqm-fast"
    program.parent.mkdir()
    program.touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.executable", str(program.with_name("python")))
    monkeypatch.setenv("PATH", "")
    assert _report_command(Path("my runs")) == "bin/pqm-fast report 'my runs' --out 'my runs/report.html'"
    monkeypatch.setenv("PATH", str(program.parent))
    assert _report_command(Path("runs")) == "pqm-fast report runs --out runs/report.html"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--seeds"], "seeds: give at least one"),
        (["--losses"], "losses: give at least one"),
        (["--losses", "rank", "sibling+bce"], "losses sibling+bce: choose a loss (rank, "),
    ],
)
def test_what_the_demo_refuses(tmp_path, capsys, options, told):
    assert main(["demo", "--out", str(tmp_path / "demo"), *options]) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_demo_beats_majority_vote_and_mean_accuracy_on_every_policy(tmp_path):
    """The bar of the embedded world, on one seed: by 0.10 on average over three, by 0.05 on any."""
    assert main(["demo", "--out", str(tmp_path / "demo"), "--no-progress"]) == 0
    stored = json.loads((tmp_path / "demo" / "result.json").read_text())
    for result in stored["losses"].values():
        for name, figures in result["policies"].items():
            assert figures["best_of_16"] > max(figures["majority_vote"], figures["mean_accuracy"]) + 0.05, name


def test_readme_shows_the_stored_result():
    root = Path(__file__).resolve().parents[2]
    stored = json.loads((root / "benchmarks" / "results" / "arithmetic-demo-cpu.json").read_text())
    assert results_table(stored["losses"]) in (root / "README.md").read_text()


def test_the_page_on_evaluation_shows_the_stored_thresholds():
    root = Path(__file__).resolve().parents[2]
    stored = json.loads((root / "benchmarks" / "results" / "step-thresholds-cpu.json").read_text())
    page = (root / "docs" / "how-to" / "evaluation.md").read_text()
    assert stored["command"] in page
    for loss, result in stored["losses"].items():
        steps = result["steps"]
        assert f"{steps['steps']:,} steps of its candidates ({steps['share_correct']:.3f} correct" in page
        both = [
            f"{steps[name]:.3f} | {steps[f'{name}_calibrated']:.3f}"
            for name in ("step_accuracy", "balanced_accuracy", "first_error_accuracy")
        ]
        assert f"| `{loss}` | {steps['auroc']:.3f} | {' | '.join(both)} |" in page
