"""`python -m pqm_benchmarks fine-tuning` at a tiny size."""

import json
from dataclasses import replace

import pytest
from pqm_benchmarks.fine_tuning.report import table
from pqm_benchmarks.fine_tuning.run import FineTuningBench, figures, run
from small_probes import config_in

from pqm_fast.errors import PQMError


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Ten test problems of two steps or more, and 40 trajectories to train on, with variants of each problem."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    probe = config_in(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    problems = [row | {"id": f"p{i % 30}/{i // 30}"} for i, row in enumerate(rows)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    return FineTuningBench(
        model=probe.model, data=(str(tmp_path / "data.jsonl"),), out=str(tmp_path / "out"), losses=("bce", "rank"),
        seeds=(0,), kinds=("full",), trajectories=40, longest=40, micro_batch_tokens=128, dtype="float32",
    )  # fmt: skip


def test_fine_tuning_trains_tests_and_does_nothing_twice(config, tmp_path, monkeypatch, capsys):
    results = run(config)
    assert results["training"] <= 40
    assert results["training_problems"] == results["training"] / 4
    assert [(cell["kind"], cell["loss"], cell["seeds"]) for cell in results["cells"]] == [
        ("full", "bce", [0]), ("full", "rank", [0])
    ]  # fmt: skip
    bce, rank = results["cells"]
    for name in ("auroc", "pair_accuracy"):
        assert rank["figures"][name]["mean"] == pytest.approx(rank["by_seed"][name][0])
        difference = rank["figures"][name]["mean"] - bce["figures"][name]["mean"]
        assert rank["against"]["figures"][name]["mean"] == pytest.approx(difference)
    train, test = (
        {json.loads(line)["id"].partition("/")[0] for line in (tmp_path / "out" / name).read_text().splitlines()}
        for name in ("train.jsonl", "test.jsonl")
    )
    assert not train & test
    assert table(results) in capsys.readouterr().out
    monkeypatch.setattr("pqm_fast.train.loop.train", lambda *_: pytest.fail("trained again"))
    assert run(config)["cells"] == results["cells"]
    for other in ({"trajectories": 20}, {"epochs": 2.0}, {"learning_rates": (1e-3, 1e-3)}):
        with pytest.raises(PQMError, match=f"holds a comparison under other conditions: {next(iter(other))}"):
            run(replace(config, **other))


def test_the_same_command_continues_wherever_it_was_killed(config, tmp_path, monkeypatch):
    """In a training, which begins again, and between a training and its scores, where nothing is trained again."""
    config = replace(config, losses=("bce",))
    folder = tmp_path / "out" / "runs" / "full-bce-0"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pqm_fast.train.loop.train", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    folder.mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl"):  # what a training that is killed leaves
        (folder / name).write_text("")
    with monkeypatch.context() as patch:
        patch.setattr("pqm_fast.scoring.run.score", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    monkeypatch.setattr("pqm_fast.train.loop.train", lambda *_: pytest.fail("trained again"))
    assert run(config)["cells"][0]["seeds"] == [0]
    assert not list(folder.glob("*.safetensors"))


def test_seeds_are_paired_where_some_are_missing(tmp_path):
    """Scores are right in `right` of ten problems, which differs by seed: `rank` lacks seed 0, and `bce` seed 2."""
    config = FineTuningBench("m", (), str(tmp_path), losses=("bce", "rank", "bce+sibling"), kinds=("lora",))
    rows = [{"id": f"p{i}/0", "prompt": f"Q{i}", "completions": ["a", "b"], "labels": [1.0, 0.0]} for i in range(10)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "scores").mkdir()
    right = {"bce-0": 2, "bce-1": 5, "rank-1": 9, "rank-2": 10, "bce+sibling-2": 6}
    for name, count in right.items():
        scores = [{"id": row["id"], "scores": [1.0, 0.0] if i < count else [0.0, 1.0]} for i, row in enumerate(rows)]
        (tmp_path / "scores" / f"lora-{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))
    (tmp_path / "scores" / "full-bce-0.jsonl").write_text("not asked for")
    found = figures(config)
    bce, rank, sibling = found["cells"]
    assert [cell["seeds"] for cell in (bce, rank, sibling)] == [[0, 1], [1, 2], [2]]
    assert rank["by_seed"]["pair_accuracy"] == pytest.approx([0.9, 1.0])
    assert (bce["against"], sibling["against"]) == (None, None)
    assert rank["against"]["seeds"] == [1]
    assert rank["against"]["figures"]["pair_accuracy"]["mean"] == pytest.approx(0.9 - 0.5)
    lines = table({"config": {"losses": config.losses}, **found}).splitlines()
    assert lines[3].startswith("| LoRA, rank 16 | rank | 1, 2 |")
    assert lines[3].count(", seeds 1 |") == 2
    assert lines[4].endswith("| - | - |")
