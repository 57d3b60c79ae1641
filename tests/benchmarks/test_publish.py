"""`python -m pqm_benchmarks publish`: stored files, pictures and the README's section, of a run that is made up."""

import json
from pathlib import Path

import pytest
from pqm_benchmarks.__main__ import main
from pqm_benchmarks.gpu import publish
from pqm_benchmarks.gpu.publish import BEGIN, END, NOTHING, written

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def measured(whole_run):
    """Files of training and scoring, as of a GPU."""
    found = {}
    for name in ("train", "score"):
        results = json.loads((whole_run(name) / f"{name}.json").read_text())
        results["environment"]["device"] = "NVIDIA H100 80GB HBM3"
        found[name] = results | {"device": "cuda"}
    return found


@pytest.fixture
def folder(measured, tmp_path):
    """Of a run."""
    made = tmp_path / "run"
    made.mkdir()
    (made / "train-0.5B.json").write_text(json.dumps(measured["train"]))
    (made / "score-7B.json").write_text(json.dumps(measured["score"]))
    (made / "log.txt").write_text("what was said")
    environment = measured["train"]["environment"] | {"commit": "abc1234"}
    target = ["Qwen2.5-0.5B: MFU on tokens computed", ">= 42%", "47.1%", "not judged"]
    rows = [
        {"name": "check", "status": "passed", "why": None,
         "figures": {"environment": environment, "device": "cuda", "headline": "copy 3,012 GB/s"}},
        {"name": "tests", "status": "failed", "why": "2 failed", "figures": {"headline": "1,180 passed, 2 failed"}},
        {"name": "train-0.5B", "status": "passed", "why": None,
         "figures": {"targets": [target], "left_out": {"trl": "out of memory"}}},
    ]  # fmt: skip
    (made / "summary.json").write_text(json.dumps(rows))
    return made


@pytest.fixture
def checkout(tmp_path):
    made = tmp_path / "checkout"
    made.mkdir()
    (made / "README.md").write_text(f"# Before\n\n{BEGIN}\n\n{NOTHING}\n\n{END}\n\n## After\n")
    return made


def change(folder, **figures):
    rows = json.loads((folder / "summary.json").read_text())
    rows[0]["figures"] |= figures
    (folder / "summary.json").write_text(json.dumps(rows))


def test_a_run_is_stored_drawn_and_told(folder, checkout, capsys):
    assert main(["publish", str(folder), "--root", str(checkout)]) == 0
    stored = checkout / "benchmarks" / "results" / "gpu-h100-80gb-hbm3"
    assert {file.name for file in stored.iterdir()} == {"summary.json", "train-0.5B.json", "score-7B.json"}
    assert (stored / "summary.json").read_bytes() == (folder / "summary.json").read_bytes()
    images = sorted((checkout / "docs" / "images").iterdir())
    assert [image.name for image in images] == [
        "gpu-h100-80gb-hbm3-scoring.png", "gpu-h100-80gb-hbm3-train_steps.png",
    ]  # fmt: skip
    assert all(image.read_bytes().startswith(b"\x89PNG") for image in images)
    readme = (checkout / "README.md").read_text()
    assert readme.startswith(f"# Before\n\n{BEGIN}\n\nMeasured on one **NVIDIA H100 80GB HBM3** (")
    assert readme.endswith(f"{END}\n\n## After\n")
    section = readme.partition(BEGIN)[2].partition(END)[0].strip()
    assert section == written(checkout) == capsys.readouterr().out.strip()
    for line in (
        "| Qwen2.5-0.5B: MFU on tokens computed | >= 42% | 47.1% | not judged |",
        "- check: passed; copy 3,012 GB/s",
        "- tests: failed; 1,180 passed, 2 failed; 2 failed",
        "- train-0.5B: passed; without trl (out of memory)",
        "![gpu-h100-80gb-hbm3-scoring](docs/images/gpu-h100-80gb-hbm3-scoring.png)",
    ):
        assert line in section.splitlines()
    assert "commit abc1234" in section
    assert NOTHING not in readme


def test_a_later_run_takes_the_place_of_an_earlier_one_on_such_a_card(folder, checkout):
    publish.publish(folder, checkout)
    (folder / "score-7B.json").unlink()
    change(folder, headline="copy 3,013 GB/s")
    section = publish.publish(folder, checkout)
    assert "copy 3,013 GB/s" in section
    assert "copy 3,012 GB/s" not in section
    assert "scoring" not in section
    assert len(list((checkout / "docs" / "images").iterdir())) == 1


def test_a_second_list_and_another_card_stand_beside_it(folder, checkout):
    publish.publish(folder, checkout)
    rows = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps([rows[0], rows[2] | {"name": "train-7B"}]))
    publish.publish(folder, checkout)
    change(folder, environment=rows[0]["figures"]["environment"] | {"device": "NVIDIA H200"})
    section = publish.publish(folder, checkout)
    assert {path.name for path in (checkout / "benchmarks" / "results").iterdir()} == {
        "gpu-h100-80gb-hbm3", "gpu-h100-80gb-hbm3-second", "gpu-h200-second",
    }  # fmt: skip
    assert section.count("Measured on one **NVIDIA H100") == 2
    assert section.count("Measured on one **NVIDIA H200**") == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder, checkout: change(folder, device="cpu"), "not measured on a GPU"),
        (lambda folder, checkout: (folder / "summary.json").write_text("{}"), "not measured on a GPU"),
        (lambda folder, checkout: (folder / "summary.json").unlink(), "no summary of `python -m pqm_benchmarks gpu`"),
        (lambda folder, checkout: (checkout / "README.md").write_text("# Mine\n"), "has no place for the figures"),
        (lambda folder, checkout: (checkout / "README.md").unlink(), "has no place for the figures"),
    ],
)
def test_what_must_not_be_shown_is_refused(folder, checkout, capsys, spoil, message):
    spoil(folder, checkout)
    assert main(["publish", str(folder), "--root", str(checkout)]) == 1
    assert message in capsys.readouterr().err
    assert not (checkout / "benchmarks").exists()


def test_a_card_that_computes_wrong_is_refused(folder, checkout, capsys):
    rows = json.loads((folder / "summary.json").read_text())
    rows[0] |= {"status": "failed", "why": "op, loss: error 0.5"}
    (folder / "summary.json").write_text(json.dumps(rows))
    assert main(["publish", str(folder), "--root", str(checkout)]) == 1
    assert "the stage check failed: op, loss: error 0.5; nothing is published" in capsys.readouterr().err


def test_the_readme_says_what_is_stored():
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()
    assert section == written(ROOT)
