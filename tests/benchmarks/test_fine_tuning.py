"""`python -m pqm_benchmarks fine-tuning` at a tiny size."""

import json

import pytest
from pqm_benchmarks.fine_tuning.report import table
from pqm_benchmarks.fine_tuning.run import FineTuningBench, run
from small_probes import config_in


def test_fine_tuning_trains_tests_and_does_nothing_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    probe = config_in(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    problems = [row | {"id": f"p{i % 30}/{i // 30}"} for i, row in enumerate(rows)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    config = FineTuningBench(
        model=probe.model, data=(str(tmp_path / "data.jsonl"),), out=str(tmp_path / "out"), losses=("bce", "rank"),
        seeds=(0,), kinds=("full",), trajectories=40, longest=40, micro_batch_tokens=128, dtype="float32",
    )  # fmt: skip
    results = run(config)
    assert results["training"] <= 40
    assert results["training_problems"] == results["training"] / 4
    assert [(cell["kind"], cell["loss"], cell["seeds"]) for cell in results["cells"]] == [
        ("full", "bce", 1), ("full", "rank", 1)
    ]  # fmt: skip
    bce, rank = results["cells"]
    for name in ("auroc", "pair_accuracy"):
        assert rank["figures"][name]["mean"] == pytest.approx(rank["by_seed"][name][0])
        difference = rank["figures"][name]["mean"] - bce["figures"][name]["mean"]
        assert rank["against"][name]["mean"] == pytest.approx(difference)
    train, test = (
        {json.loads(line)["id"].partition("/")[0] for line in (tmp_path / "out" / name).read_text().splitlines()}
        for name in ("train.jsonl", "test.jsonl")
    )
    assert not train & test
    assert table(results) in capsys.readouterr().out
    monkeypatch.setattr("pqm_fast.train.loop.train", lambda *_: pytest.fail("trained again"))
    assert run(config)["cells"] == results["cells"]
