"""`pqm-fast evaluate` on scored files: the table, the JSON and the pictures."""

import json

import numpy as np
import pytest

from pqm_fast.cli import main
from pqm_fast.evaluate.aggregate import AGGREGATORS


@pytest.fixture
def no_pictures(monkeypatch):
    """They take longer than these evaluations."""
    monkeypatch.setattr("pqm_fast.evaluate.pictures.draw", lambda result, out: [])


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def processbench(seed, count, prefix):
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        label = -1 if i % 2 else int(rng.integers(0, 3))
        scores = [float(rng.normal(-3 if t == label else 1)) for t in range(3)]
        rows.append(
            {"id": f"{prefix}{i}", "problem": f"{prefix} {i}", "steps": ["s"] * 3, "label": label, "scores": scores}
        )
    return rows


def pool(count):
    rng = np.random.default_rng(0)
    return [
        {
            "id": f"q{q}/{k}",
            "prompt": f"{q}?",
            "completions": ["so", f"it is {rng.integers(0, 3)}"],
            "scores": rng.normal(size=2).tolist(),
            "question_id": f"q{q}",
            "answer": "1",
            "policy": "ab"[k % 2],
        }
        for q in range(count)
        for k in range(12)
    ]


def test_table_json_and_pictures(tmp_path, capsys):
    data, out = write(tmp_path / "pool.jsonl", pool(10)), tmp_path / "result.json"
    assert main(["evaluate", "--data", str(data), "--out", str(out)]) == 0
    result, printed = json.loads(out.read_text()), capsys.readouterr().out
    overall = result["overall"]
    assert set(overall["best_of_n"]) == set(overall["weighted_vote"]) == set(AGGREGATORS)
    assert list(overall["best_of_n"]["prod"]) == ["1", "2", "4", "8"]
    for name in ("a", "b", "all candidates"):
        assert f"\n  {name}  " in printed
    assert f"{overall['weighted_vote']['max']['8']['mean']:.3f} +-" in printed
    assert printed.endswith(f"picture: {tmp_path / 'result.best_of_n.png'}\n")
    assert {path.name for path in tmp_path.iterdir()} == {"pool.jsonl", "result.json", "result.best_of_n.png"}


@pytest.mark.usefixtures("no_pictures")
def test_temperature_reaches_the_scores(tmp_path, capsys):
    """A temperature close to 0 gives the figures of min, and a high one those of mean."""
    data, out = write(tmp_path / "pool.jsonl", pool(10)), tmp_path / "result.json"
    few = ["--draws", "2", "--n", "1", "4", "--aggregate", "min", "mean", "softmin"]
    for temperature, other in (("1e-3", "min"), ("1e3", "mean")):
        assert main(["evaluate", "--data", str(data), "--temperature", temperature, "--out", str(out), *few]) == 0
        result = json.loads(out.read_text())
        assert result["temperature"] == float(temperature)
        assert f"\n  softmin: at temperature {float(temperature):g}\n" in capsys.readouterr().out
        best = result["overall"]["best_of_n"]
        assert best["softmin"] == best[other]
        assert best["min"] != best["mean"]
    assert main(["evaluate", "--data", str(data), "--out", str(out), *few[:-2]]) == 0
    assert "temperature" not in json.loads(out.read_text())
    assert main(["evaluate", "--data", str(data), "--temperature", "0"]) == 1
    assert "temperature: 0.0 was given; it must be a finite number above 0" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
def test_draws_and_seed_reach_the_votes(tmp_path):
    data = write(tmp_path / "pool.jsonl", pool(5))

    def votes(*options):
        out = tmp_path / "result.json"
        fixed = ["--data", str(data), "--n", "6", "--aggregate", "min", "--out", str(out)]
        assert main(["evaluate", *fixed, *options]) == 0
        return json.loads(out.read_text())["overall"]["self_consistency"]["6"]

    asked = (("40", "0"), ("40", "0"), ("40", "7"), ("924", "0"))  # 924 is C(12, 6)
    few, same, other, all_subsets = (votes("--draws", draws, "--seed", seed) for draws, seed in asked)
    assert few == same
    assert few["mean"] != other["mean"]
    assert all_subsets["sampling_error"] == 0.0 < few["sampling_error"]


@pytest.mark.usefixtures("no_pictures")
def test_calibrate_on_other_records(tmp_path, capsys):
    data = write(tmp_path / "scored.jsonl", processbench(0, 60, "one"))
    others = write(tmp_path / "others.jsonl", processbench(1, 60, "two"))
    out = tmp_path / "result.json"
    arguments = ["evaluate", "--data", str(data), "--out", str(out)]
    assert main([*arguments, "--calibrate", str(others)]) == 0
    result = json.loads(out.read_text())
    assert result["records"] == 60
    assert len(result["processbench_calibrated"]["thresholds"]) == 1
    assert result["processbench_calibrated"]["f1"] > result["processbench"]["f1"]
    assert "calibrated on: other questions given" in capsys.readouterr().out
    assert main(arguments) == 0
    assert len(json.loads(out.read_text())["processbench_calibrated"]["thresholds"]) == 5


def test_what_no_threshold_may_come_from(tmp_path, capsys):
    data = write(tmp_path / "scored.jsonl", processbench(0, 20, "one"))
    mixed = write(tmp_path / "mixed.jsonl", [*processbench(1, 20, "two"), processbench(0, 1, "one")[0]])
    unscored = write(tmp_path / "unscored.jsonl", [{**processbench(1, 1, "two")[0], "scores": None}])
    out = tmp_path / "result.json"
    for calibrate, message in (
        (data, "record one0 asks a question that is also scored"),
        (mixed, "record one0 asks a question that is also scored"),
        (unscored, f"{unscored}: record two0: no `scores`"),
        (tmp_path / "gone.jsonl", "gone.jsonl: no file"),
    ):
        assert main(["evaluate", "--data", str(data), "--calibrate", str(calibrate), "--out", str(out)]) == 1
        assert message in capsys.readouterr().err
        assert not out.exists()


@pytest.mark.parametrize("by", ["error_type", "task"])
def test_types_by_any_field(tmp_path, by, capsys):
    rows = [
        {"prompt": f"{i}?", "completions": ["s"] * 2, "labels": [1, i % 2], "scores": [1.0, -1.0], by: "ab"[i % 2]}
        for i in range(6)
    ]
    assert main(["evaluate", "--data", str(write(tmp_path / "rows.jsonl", rows)), "--by", by]) == 0
    assert f"Steps by {by}\n  {by}" in capsys.readouterr().out


def test_a_policy_with_one_candidate_has_nothing_to_choose(tmp_path, capsys):
    rows = [row | {"policy": "many"} for row in pool(6)]
    rows += [
        {**row, "id": f"{row['id']}/once", "policy": "once", "completions": ["so", f"it is {i % 2}"]}
        for i, row in enumerate(rows[::12])
    ]
    out = tmp_path / "result.json"
    assert main(["evaluate", "--data", str(write(tmp_path / "pool.jsonl", rows)), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    [own] = [line for line in lines if line.startswith("  once")]
    mean = json.loads(out.read_text())["policies"]["once"]["mean_accuracy"]
    assert own.split() == ["once", "6", "6", f"{mean['mean']:.3f}", f"+-{mean['high'] - mean['mean']:.3f}"]
    after = lines[lines.index(own) + 1]
    assert after.startswith("  all candidates")
    alone = [row for row in rows if row["policy"] == "once"]
    assert main(["evaluate", "--data", str(write(tmp_path / "once.jsonl", alone)), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Accuracy, +- 95% interval over questions" in printed
    assert not any(word in printed for word in ("Best-of-N", "pass@n", "picture"))


@pytest.mark.usefixtures("no_pictures")
def test_the_model_is_named_if_the_scores_are_of_one(tmp_path):
    out = tmp_path / "result.json"
    rows = processbench(0, 10, "one")
    for names, model in ((["/m/a"] * 10, "/m/a"), (["/m/a"] * 5 + ["/m/b"] * 5, None), ([None] * 10, None)):
        own = [row | ({"scored_by": name} if name else {}) for row, name in zip(rows, names, strict=True)]
        data = write(tmp_path / "scored.jsonl", own)
        assert main(["evaluate", "--data", str(data), "--out", str(out)]) == 0
        result = json.loads(out.read_text())
        assert (result["model"], result["data"]) == (model, [str(data)])
