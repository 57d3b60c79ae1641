"""The measurement of guided search: its figures against a definition, its tables in the documentation."""

import json
from dataclasses import asdict
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


def test_the_text_says_what_was_measured(stored):
    """The numbers between the tables of the page, and those of README and the log."""
    page, readme, log = (
        " ".join((ROOT / name).read_text(encoding="utf-8").split())
        for name in ("docs/how-to/guided-search.md", "README.md", "docs/log.md")
    )

    def setting(**options):
        [row] = [row for row in stored["settings"] if row["setting"] == asdict(Setting(**options))]
        return row["search"], row["samples"]["average"]

    def average(search, choice="best"):
        return f"{search['average'][choice]:.3f}"

    (eight, samples_8), (sixteen, samples_16) = setting(n=8), setting(n=16)
    (distinct, _), (last, samples_last) = setting(distinct=True), setting(aggregate="last")
    best_16 = f"{samples_16['best']:.3f}"
    assert f"with 200 tokens ({average(eight)}) is ahead of the best of 16 samples with 400 ({best_16})" in page
    assert [round(search["average"]["tokens"]) for search in (eight, sixteen)] == [200, 400]
    careless, skip = (sixteen["policies"][name] for name in ("careless", "skip"))
    assert f"{careless['weighted_vote']:.3f} against {careless['best']:.3f} with N = 16" in page
    assert f"ahead by a little, {skip['weighted_vote']:.3f} against {skip['best']:.3f}" in page
    ahead = {  # of the highest score
        (row["setting"]["n"], policy)
        for row in stored["settings"]
        if Setting(**row["setting"]) in MAIN
        for policy, found in row["search"]["policies"].items()
        if found["weighted_vote"] > found["best"]
    }
    assert ahead == {(4, "careless"), (8, "careless"), (16, "careless"), (16, "skip")}
    assert f"**: {average(distinct)} instead of {average(eight)}" in page
    right = [average(search, "mean_accuracy") for search in (eight, distinct)]
    assert f"the share of right solutions falls from {right[0]} to {right[1]}" in page
    assert f"no better than it was ({average(last)} and {average(eight)})" in page
    assert f"the best sample worse ({samples_last['best']:.3f} and {samples_8['best']:.3f})" in page
    assert f"Best-of-16 at equal tokens ({average(sixteen)} and {best_16})" in readme
    assert f"accuracy is {average(distinct)} with it and {average(eight)} without" in log
    assert f"plain samples with as many tokens have {samples_8['best']:.3f}" in log


def test_the_stored_run_is_of_the_settings(stored):
    assert [Setting(**row["setting"]) for row in stored["settings"]] == [*MAIN, *VARIANTS]
    for row in stored["settings"]:
        search, samples = row["search"]["average"], row["samples"]["average"]
        assert samples["tokens"] >= search["tokens"]  # the samples never have fewer
        assert row["difference"]["mean"] == pytest.approx(search["best"] - samples["best"])
        # what the page says: the search is ahead of the best sample
        assert row["difference"]["low"] > 0


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
