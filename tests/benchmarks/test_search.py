"""The measurement of guided search: its figures against a definition, its tables in the documentation."""

import json
from pathlib import Path

import pytest
from pqm_benchmarks.__main__ import main
from pqm_benchmarks.search import run as bench
from pqm_benchmarks.search.report import tables
from pqm_benchmarks.search.run import MAIN, VARIANTS, Setting

from pqm_fast.arithmetic.world import write_world
from pqm_fast.data.encode import Template
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.model.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def stored():
    return json.loads((ROOT / "benchmarks" / "results" / "guided-search-cpu.json").read_text())


def test_the_documentation_shows_the_tables(stored):
    text = (ROOT / "docs" / "how-to" / "guided-search.md").read_text(encoding="utf-8")
    for name, table in tables(stored).items():
        assert f"\n\n{table}\n\n" in text, name


def test_the_stored_run_is_of_the_settings(stored):
    assert [Setting(**row["setting"]) for row in stored["settings"]] == [*MAIN, *VARIANTS]
    for row in stored["settings"]:
        search, samples = row["search"]["average"], row["samples"]["average"]
        assert samples["tokens"] >= search["tokens"]  # the samples never have fewer
        assert row["difference"]["mean"] == pytest.approx(search["best"] - samples["best"])
        # what the page says: the search is ahead of the best sample
        assert row["setting"]["distinct"] or row["difference"]["low"] > 0


def test_a_small_measurement(tmp_path, monkeypatch, capsys):
    """Two policies, two models with random weights, six questions."""
    demo, work, out = tmp_path / "demo", tmp_path / "work", tmp_path / "out.json"
    world = write_world(demo / "world", problems=4, test_problems=6, candidates=1)
    for seed in (0, 3):
        model = StepQModel.from_pretrained(str(world.model))
        model.save(demo / f"bce-seed{seed}", load_tokenizer(str(world.model)), Recipe(Template(step_token="last")))
    config = {"losses": ["bce"], "seeds": [0, 3], "world_seed": 0}
    (demo / "result.json").write_text(json.dumps({"config": config}))
    monkeypatch.setattr(bench, "MAIN", tuple(Setting(method, 8) for method in ("beam", "dvts")))
    monkeypatch.setattr(bench, "VARIANTS", ())
    arguments = ["--demo", str(demo), "--work", str(work), "--policies", "careless", "skip"]
    assert main(["search", *arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    results = json.loads(out.read_text())
    assert [row["questions"] for row in results["settings"]] == [6, 6]
    assert printed.endswith("\n\n".join(tables(results).values()) + "\n")
    for row in results["settings"]:
        for part in ("search", "samples"):
            policies, average = row[part]["policies"], row[part]["average"]
            assert list(policies) == ["careless", "skip"]
            assert average["best"] == pytest.approx(sum(figures["best"] for figures in policies.values()) / 2)
        assert row["difference"]["mean"] == pytest.approx(
            row["search"]["average"]["best"] - row["samples"]["average"]["best"]
        )
    assert main(["search", "--results", str(out)]) == 0
    assert printed.endswith(capsys.readouterr().out)
    assert main(["search", *arguments]) == 1
    assert "work: is not empty" in capsys.readouterr().err
    assert main(["search"]) == 1
    assert "give --demo" in capsys.readouterr().err
    (demo / "result.json").write_text(json.dumps({"config": config | {"losses": ["bce", "rank"]}}))
    assert main(["search", "--demo", str(demo), "--work", str(tmp_path / "new")]) == 1
    assert "has models of 2 losses" in capsys.readouterr().err
    assert main(["search", "--results", str(demo / "result.json")]) == 1
    assert "is not a file of `python -m pqm_benchmarks search --out`" in capsys.readouterr().err
