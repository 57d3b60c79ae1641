"""Pools from several policies: written, read back, resumed and refused."""

import json
import os

import pytest
from part_file import rows_in, sealed
from worlds import questions, rows_of, sample, write

from pqm_fast.arithmetic.world import write_world
from pqm_fast.cli import main
from pqm_fast.data import read_records
from pqm_fast.evaluate.answers import final_answer
from pqm_fast.sample.arithmetic_policy import ArithmeticPolicy
from pqm_fast.sample.policy import request_seed


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "questions.jsonl", questions(12))


def test_pool_of_three_policies_is_scored_and_evaluated(data, tmp_path):
    out = tmp_path / "pool.jsonl"
    names = ["careless", "strong", "copy:1"]
    assert sample(data, out, *(f"arithmetic:{name}" for name in names), n=6) == 0
    rows = rows_of(out)
    assert [{k: row[k] for k in ("id", "question", "answer")} for row in rows] == questions(12)
    assert [(r["model_name"], r["sample"]) for r in rows[0]["responses"]] == [(m, s) for m in names for s in range(6)]

    world = write_world(tmp_path / "world", problems=20, test_problems=5)
    options = ["--device", "cpu", "--no-progress"]
    trained = ["--model", world.model, "--data", world.train, "--out", tmp_path / "run", "--cache-dir", tmp_path / "c"]
    assert main(["train", *map(str, trained), "--max-steps", "2", "--step-token", "last", *options]) == 0
    scored = ["--model", tmp_path / "run", "--data", out, "--out", tmp_path / "scored.jsonl"]
    assert main(["score", *map(str, scored), *options]) == 0
    assert main(["evaluate", "--data", str(tmp_path / "scored.jsonl"), "--out", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    for name in names:
        right = [
            final_answer("\n".join(r["steps"])) == row["answer"]
            for row in rows
            for r in row["responses"]
            if r["model_name"] == name
        ]
        figures = result["policies"][name]
        assert figures["candidates"] == len(right) == 72
        assert figures["mean_accuracy"]["mean"] == pytest.approx(sum(right) / 72)
        assert 0 < sum(right) < 72


def test_a_sample_depends_on_seed_policy_question_and_number_alone(data, tmp_path):
    """Not on what is sampled beside it, on ids, or on the position of the question."""
    out = tmp_path / "pool.jsonl"
    assert sample(data, out, "arithmetic:strong", "arithmetic:careless", n=6) == 0
    by_question = {row["question"]: row["responses"] for row in rows_of(out)}
    rows = [{"problem": row["question"], "note": "kept"} for row in questions(12)[::-3]]
    assert sample(write(tmp_path / "few.jsonl", rows), tmp_path / "few", "arithmetic:careless", n=3) == 0
    few = rows_of(tmp_path / "few")
    assert [row["id"] for row in few] == [f"few:{k}" for k in (1, 2, 3, 4)]
    for row in few:
        assert row["note"] == "kept"
        assert "answer" not in row
        assert row["responses"] == by_question[row["question"]][6:9]
    assert sample(data, tmp_path / "other", "arithmetic:strong", "arithmetic:careless", n=6, seed=1) == 0
    assert (tmp_path / "other").read_bytes() != out.read_bytes()
    assert len({request_seed(s, p, q, k) for s in (0, 1) for p in "ab" for q in ("x", "y") for k in range(50)}) == 400


@pytest.mark.parametrize("lost", [1, 200, None])
def test_interrupted_sampling_resumes(data, tmp_path, monkeypatch, lost):
    """Interrupted within the second of two policies; OUT.part is cut off anywhere, even within a line."""
    policies = ("arithmetic:careless", "arithmetic:strong")
    assert sample(data, tmp_path / "whole.jsonl", *policies, n=5) == 0
    asked = []
    original = ArithmeticPolicy._complete

    def counted(self, request):
        asked.append(request)
        if len(asked) == 81:
            raise KeyboardInterrupt
        return original(self, request)

    out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    monkeypatch.setattr(ArithmeticPolicy, "_complete", counted)
    assert sample(data, out, *policies, n=5) == 130
    assert rows_in(part) == 80
    assert not out.exists()
    os.truncate(part, part.stat().st_size - lost if lost is not None else 0)
    left = rows_in(part)
    assert sample(data, out, *policies, n=5) == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(asked) == 81 + 120 - left
    assert not list(tmp_path.glob("out.jsonl.part*"))


def test_another_run_does_not_resume_this_one(data, tmp_path, monkeypatch, capfd):
    out = tmp_path / "out.jsonl"
    part = tmp_path / "out.jsonl.part"
    with monkeypatch.context() as patch:
        patch.setattr("pqm_fast.sample.sample_solutions._write", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        assert sample(data, out, "arithmetic:strong", n=2) == 130
    for policy, options, name in [
        ("strong", {"n": 3}, "n (2 then, 3 now)"),
        ("copy", {"n": 2}, "policy ([['arithmetic', 'strong']] then, [['arithmetic', 'copy']] now)"),
        ("strong", {"n": 2, "seed": 5}, "seed (0 then, 5 now)"),
        ("strong", {"n": 2, "step_separator": "; "}, "step_separator"),
    ]:
        assert sample(data, out, f"arithmetic:{policy}", **options) == 1
        error = capfd.readouterr().err
        assert f"{part}: was started with other options: {name}" in error
        assert "delete it to start over" in error
    part.write_bytes(part.read_bytes().replace(b'"n": 2', b'"n": 3', 1))
    assert sample(data, out, "arithmetic:strong", n=3) == 1
    assert f"{part}: its first line, with the options it was started with, is damaged" in capfd.readouterr().err
    assert sample(data, out, "arithmetic:strong", n=2) == 0
    assert f"{part}: 1 damaged (line 1)" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("line", "with_checksum"),
    [
        ('{"number": 1, "text": "", "finished": true}', False),
        ("{]", True),
        ("7", True),
        ('{"number": 99999, "text": "", "finished": true}', True),
        ('{"number": -1, "text": "", "finished": true}', True),
        ('{"number": 1, "text": null, "finished": true}', True),
        ('{"number": 1}', True),
    ],
)
def test_a_damaged_part_file_is_reported(data, tmp_path, monkeypatch, capfd, line, with_checksum):
    """A foreign line replaces one in the middle. Only the lost solution is sampled again."""
    out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    with monkeypatch.context() as patch:
        patch.setattr("pqm_fast.sample.sample_solutions._write", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        assert sample(data, out, "arithmetic:strong", n=1) == 130
    lines = part.read_bytes().splitlines(keepends=True)
    lines[2] = sealed(part, line.encode()) if with_checksum else line.encode() + b"\n"
    part.write_bytes(b"".join(lines))
    asked = []
    original = ArithmeticPolicy._complete
    monkeypatch.setattr(ArithmeticPolicy, "_complete", lambda self, r: asked.append(r) or original(self, r))
    assert sample(data, out, "arithmetic:strong", n=1) == 0
    assert f"{part}: 1 damaged (line 3): rows are done again" in capfd.readouterr().out
    assert len(asked) == 1
    assert sample(data, tmp_path / "whole.jsonl", "arithmetic:strong", n=1) == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.fault(
    "the disk is full, in `sample`",
    how="limits on the size of files (RLIMIT_FSIZE): within OUT.part, and while OUT is written from it",
    lost="nothing",
    recovers="exit code 1 and one message with the file and what is kept; once there is room, the same command resumes",
)
def test_no_room(data, tmp_path, capfd, file_size_limit):
    out = tmp_path / "out.jsonl"
    assert sample(data, tmp_path / "whole.jsonl", "arithmetic:strong", n=3) == 0
    whole = (tmp_path / "whole.jsonl").read_bytes()
    with file_size_limit(1000):
        assert sample(data, out, "arithmetic:strong", n=3) == 1
    kept = f"; what is done is kept in {out}.part\n"
    assert capfd.readouterr().err == f"pqm-fast: error: {out}.part: File too large{kept}"
    with file_size_limit(len(whole) - 1):  # OUT.part has fewer bytes
        assert sample(data, out, "arithmetic:strong", n=3) == 1
    assert capfd.readouterr().err == f"pqm-fast: error: {out}: File too large{kept}"
    assert not out.exists()
    assert sample(data, out, "arithmetic:strong", n=3) == 0
    assert out.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "questions.jsonl", "whole.jsonl"]


def test_what_cannot_be_sampled(data, tmp_path, capfd):
    def fails(part, *policies, source=data, **options):
        assert sample(source, tmp_path / "out.jsonl", *policies, **options) == 1
        assert part in capfd.readouterr().err
        assert list(tmp_path.iterdir()) == [data]

    fails("n: 0 was given", "arithmetic:strong", n=0)
    fails("name at least one, and each model once", "arithmetic:strong", "arithmetic:strong")
    fails("policy arithmetic:wise: choose one of facts", "arithmetic:wise")
    fails("policy: empty", "")
    fails("gone.jsonl: no file", "arithmetic:strong", source=tmp_path / "gone.jsonl")
    fails("temperature: -1.0 was given; it must be 0 or more", "arithmetic:strong", temperature=-1)
    fails("temperature: inf was given", "arithmetic:strong", temperature="inf")
    fails("top_p: 0.0 was given", "arithmetic:strong", top_p=0)
    fails("parallel: 0 was given", "arithmetic:strong", parallel=0)
    fails("prompt_format 'x': it must contain {prompt} exactly once", "arithmetic:strong", prompt_format="x")
    fails("system: is for --prompt-format chat", "arithmetic:strong", system="Be right.")
    fails("step_separator: empty", "arithmetic:strong", step_separator="")
    (tmp_path / "empty.jsonl").write_text("")
    assert sample(tmp_path / "empty.jsonl", tmp_path / "out.jsonl", "arithmetic:strong") == 1
    assert "no questions; give at least one" in capfd.readouterr().err


def test_progress_bars_are_for_those_who_want_them(data, tmp_path, capfd):
    assert sample(data, tmp_path / "pool.jsonl", "arithmetic:strong", n=2) == 0
    quiet = ["--data", str(tmp_path / "pool.jsonl"), "--policy", "arithmetic:strong"]
    assert main(["annotate", *quiet, "--out", str(tmp_path / "a.jsonl"), "--no-progress"]) == 0
    assert capfd.readouterr().err == ""
    assert main(["annotate", *quiet, "--out", str(tmp_path / "b.jsonl")]) == 0
    assert "24/24" in capfd.readouterr().err
    assert sample(data, tmp_path / "loud.jsonl", "arithmetic:strong", n=2, progress=True) == 0
    assert "24/24" in capfd.readouterr().err


def test_records_of_a_pool(data, tmp_path):
    assert sample(data, tmp_path / "pool.jsonl", "arithmetic:skip", n=2) == 0
    record = next(iter(read_records(tmp_path / "pool.jsonl")))
    assert record.id == "q0/1"
    assert {"policy": "skip", "sample": 0, "finish_reason": "stop", "question_id": "q0"}.items() <= record.extra.items()
