"""The demo, shortened: the whole path from the world to the table and the picture."""

import json
from pathlib import Path

import pytest

from pqm_fast.cli import main
from pqm_fast.demo import _table

SHORT = "--steps 4 --problems 60 --test-problems 5 --micro-batch-tokens 256 --no-progress"


def test_demo(tmp_path, capsys):
    folder = tmp_path / "demo"
    arguments = f"demo --out {folder} --seeds 0 1 --compare bce {SHORT}".split()
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "policy    mean accuracy  majority vote  best of 16, rank  best of 16, bce  any of 16 right" in out
    assert f"Best-of-16 against majority vote: {folder / 'best_of_16.png'}" in out
    assert (folder / "best_of_16.png").read_bytes()[:4] == b"\x89PNG"
    stored = json.loads((folder / "result.json").read_text())
    assert stored["versions"]["torch"]
    assert stored["config"]["steps"] == 4
    for loss in ("rank", "bce"):
        runs = stored["losses"][loss]["runs"]
        assert [run["seed"] for run in runs] == [0, 1]
        assert list(runs[0]["policies"]) == ["careless", "copy", "facts", "mixed", "sign", "skip", "strong"]
        best = [run["policies"]["mixed"]["best_of_16"] for run in runs]
        assert stored["losses"][loss]["policies"]["mixed"]["best_of_16"] == pytest.approx(sum(best) / 2)
        for seed in (0, 1):
            config = json.loads((folder / f"{loss}-seed{seed}" / "config.json").read_text())
            assert config["pqm_fast"]["loss"] == loss
    # yardsticks belong to the pool, not to the model
    assert (
        stored["losses"]["rank"]["policies"]["sign"]["majority_vote"]
        == (stored["losses"]["bce"]["policies"]["sign"]["majority_vote"])
    )

    assert main(arguments) == 1
    assert "is not empty; delete it or choose another --out" in capsys.readouterr().err


def test_demo_needs_a_seed(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "demo"), "--seeds"]) == 1
    assert "seeds: give at least one" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_demo_beats_majority_vote_and_mean_accuracy_on_every_policy(tmp_path):
    """The bar of the embedded world, on one seed: by 0.10 on average over three, by 0.05 on any."""
    assert main(["demo", "--out", str(tmp_path / "demo"), "--no-progress"]) == 0
    stored = json.loads((tmp_path / "demo" / "result.json").read_text())
    for name, own in stored["losses"]["rank"]["policies"].items():
        assert own["best_of_16"] > max(own["majority_vote"], own["mean_accuracy"]) + 0.05, name


def test_readme_shows_the_stored_result():
    root = Path(__file__).resolve().parents[1]
    stored = json.loads((root / "benchmarks" / "results" / "arithmetic-demo-cpu.json").read_text())
    assert _table(stored["losses"]) in (root / "README.md").read_text()
