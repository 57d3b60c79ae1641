"""Pools from several policies: what is written, read again, resumed and refused."""

import ast
import dataclasses
import inspect
import json
import os
import random
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import get_type_hints

import pytest
from part_file import rows_in, sealed
from worlds import questions, rows_of, sample, write

from pqm_fast.arithmetic.policies import make_policies
from pqm_fast.arithmetic.problems import OPERATIONS, TRUE_VALUES, draw_problems
from pqm_fast.arithmetic.world import write_world
from pqm_fast.cli import main
from pqm_fast.data import read_records
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.answers import final_answer
from pqm_fast.sample.annotate import AnnotateConfig
from pqm_fast.sample.arithmetic import ArithmeticPolicy, parse_problem, parse_step
from pqm_fast.sample.policy import PolicyOptions, Request, parse_policy, request_seed
from pqm_fast.sample.questions import read_questions
from pqm_fast.sample.run import SampleConfig


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "questions.jsonl", questions(12))


# ---- the pool -------------------------------------------------------------------------------------------------------


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
        found = result["policies"][name]
        assert found["candidates"] == len(right) == 72
        assert found["mean_accuracy"]["mean"] == pytest.approx(sum(right) / 72)
        assert 0 < sum(right) < 72


def test_a_sample_depends_on_seed_policy_question_and_number_alone(data, tmp_path):
    """Not on what is sampled beside it, on ids, or on where the question stands."""
    out = tmp_path / "pool.jsonl"
    assert sample(data, out, "arithmetic:strong", "arithmetic:careless", n=6) == 0
    by_question = {row["question"]: row["responses"] for row in rows_of(out)}
    rows = [{"problem": row["question"], "note": "kept"} for row in questions(12)[::-3]]
    assert sample(write(tmp_path / "few.jsonl", rows), tmp_path / "few", "arithmetic:careless", n=3) == 0
    found = rows_of(tmp_path / "few")
    assert [row["id"] for row in found] == [f"few:{k}" for k in (1, 2, 3, 4)]
    for row in found:
        assert row["note"] == "kept"
        assert "answer" not in row
        assert row["responses"] == by_question[row["question"]][6:9]
    assert sample(data, tmp_path / "other", "arithmetic:strong", "arithmetic:careless", n=6, seed=1) == 0
    assert (tmp_path / "other").read_bytes() != out.read_bytes()
    assert len({request_seed(s, p, q, k) for s in (0, 1) for p in "ab" for q in ("x", "y") for k in range(50)}) == 400


@pytest.mark.parametrize("lost", [0, 1, 200, None])
def test_interrupted_sampling_goes_on(data, tmp_path, monkeypatch, lost):
    """Within the second of two policies; cut off anywhere, also within a line."""
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


def test_another_run_does_not_go_on_from_this_one(data, tmp_path, monkeypatch, capfd):
    out = tmp_path / "out.jsonl"
    part = tmp_path / "out.jsonl.part"
    with monkeypatch.context() as patch:
        patch.setattr("pqm_fast.sample.run._write", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        assert sample(data, out, "arithmetic:strong", n=2) == 130
    for policy, options, name in [
        ("strong", {"n": 3}, "n (2 then, 3 now)"),
        ("copy", {"n": 2}, "policy ([['arithmetic', 'strong']] then, [['arithmetic', 'copy']] now)"),
        ("strong", {"n": 2, "seed": 5}, "seed (0 then, 5 now)"),
        ("strong", {"n": 2, "step_separator": "; "}, "step_separator"),
    ]:
        assert sample(data, out, f"arithmetic:{policy}", **options) == 1
        error = capfd.readouterr().err
        assert f"{part}: was begun with other options: {name}" in error
        assert "delete it to start over" in error
    part.write_bytes(part.read_bytes().replace(b'"n": 2', b'"n": 3', 1))
    assert sample(data, out, "arithmetic:strong", n=3) == 1
    assert f"{part}: its first line, of what it was begun with, is damaged" in capfd.readouterr().err
    assert sample(data, out, "arithmetic:strong", n=2) == 0
    assert f"{part}: 1 damaged (line 1)" in capfd.readouterr().out


@pytest.mark.parametrize("with_checksum", [False, True])
@pytest.mark.parametrize(
    "line",
    [
        "{]",
        "7",
        '{"number": 99999, "text": "", "finished": true}',
        '{"number": -1, "text": "", "finished": true}',
        '{"number": 1, "text": null, "finished": true}',
        '{"number": 1}',
    ],
)
def test_a_damaged_part_file_is_told(data, tmp_path, monkeypatch, capfd, line, with_checksum):
    """The foreign line and the one that it replaces, in the middle; what is lost is sampled again, and only that."""
    out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    with monkeypatch.context() as patch:
        patch.setattr("pqm_fast.sample.run._write", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
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
    how="limits on the size of files (RLIMIT_FSIZE): within OUT.part, and as OUT is written from it",
    lost="nothing",
    recovers="exit code 1 and one message with the file and what is kept; with room, the same command goes on",
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


# ---- the questions --------------------------------------------------------------------------------------------------


def test_questions_of_other_kinds(tmp_path):
    rows = [
        {"question": "Why?", "answer": "so #### 4"},  # GSM8K
        {"problem": "How?", "solution": r"\boxed{4}", "level": 5},  # MATH
        {"problem": "How much?", "solution": "long", "answer": 4, "unique_id": "x"},  # MATH-500
        {"id": 7, "prompt": "Who?", "completions": ["a"], "labels": [1]},  # a labelled record
        {"question": "When?", "question_id": "q", "responses": [{"text": "a"}], "subject": "time"},  # a pool
    ]
    found = list(read_questions([str(write(tmp_path / "q.jsonl", rows))]))
    assert [(q.id, q.text, q.answer) for q in found] == [
        ("q:1", "Why?", "so #### 4"),
        ("q:2", "How?", r"\boxed{4}"),
        ("q:3", "How much?", 4),
        ("7", "Who?", None),
        ("q", "When?", None),
    ]
    assert found[1].extra == {"solution": r"\boxed{4}", "level": 5}
    assert found[3].extra == {}
    assert found[4].extra == {"subject": "time"}


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('{"text": "Why?"}', "field question is missing (fields found: text)"),
        ('{"question": 5}', "question is 5 (int); it must be text"),
        ('{"question": " "}', "question is empty"),
        ('{"question": "Why?", "id": "a"}', "the id a is taken by"),
        ('{"question": "half \\ud83d"}', "question holds half a surrogate pair"),
        ("[1]", "is no JSON object"),
        ("{]", "not JSON"),
    ],
)
def test_bad_questions(tmp_path, capfd, line, part):
    data = tmp_path / "q.jsonl"
    data.write_text('{"id": "a", "question": "Why?"}\n' + line + "\n")
    assert sample(data, tmp_path / "out.jsonl", "arithmetic:strong") == 1
    error = capfd.readouterr().err
    assert f"{data}, line 2" in error
    assert part in error
    assert list(tmp_path.iterdir()) == [data]


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
    fails("prompt_format 'x': {prompt} must stand in it exactly once", "arithmetic:strong", prompt_format="x")
    fails("system: is for --prompt-format chat", "arithmetic:strong", system="Be right.")
    fails("step_separator: empty", "arithmetic:strong", step_separator="")
    (tmp_path / "empty.jsonl").write_text("")
    assert sample(tmp_path / "empty.jsonl", tmp_path / "out.jsonl", "arithmetic:strong") == 1
    assert "no questions; give at least one" in capfd.readouterr().err


def test_names_of_policies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arithmetic").mkdir()
    assert parse_policy("http://localhost:8000/v1#org/model") == ("server", "http://localhost:8000/v1", "org/model")
    assert parse_policy("https://api.example.com/v1/#m#x") == ("server", "https://api.example.com/v1", "m#x")
    assert parse_policy("arithmetic:careless") == ("arithmetic", "", "careless")
    assert parse_policy("Qwen/Qwen2.5-Math-7B") == ("hub", "", "Qwen/Qwen2.5-Math-7B")
    assert parse_policy("./arithmetic") == ("hub", "", "./arithmetic")
    with pytest.raises(PQMError, match="name a server and its model"):
        parse_policy("http://localhost:8000/v1")


# ---- the arithmetic policies ----------------------------------------------------------------------------------------


def test_text_of_the_arithmetic_world_is_read_back():
    rng = random.Random(0)
    policies = make_policies()
    for problem in draw_problems(300, rng):
        assert parse_problem(problem.text) == problem
        for step in policies[rng.choice(list(policies))].solve(problem, rng):
            assert parse_step(step.text) == step
    for text in ("", "7", "7 a", "7 a 2", "7 a +2 c +1", "7 b +2", "77 a +2", "0 a +2", "7 a +9", "7 a +2 ", "x a +2"):
        assert parse_problem(text) is None, text
    for text in ("", "a: 7 -2", "f: 7 -2 =5", "a: 7 -2 =500", "a 7 -2 =5", "a: 7 -2 =5 ok"):
        assert parse_step(text) is None, text
    assert max(OPERATIONS) < 10 > max(TRUE_VALUES)  # one digit, as the parser takes it


@pytest.mark.parametrize("luck", [0.0, 1.0])
def test_going_on_is_as_beginning(luck):
    """A prefix and what follows it, with the same luck, is the whole solution: for every policy and every prefix."""

    class Luck(random.Random):
        def random(self):
            return luck

        def choice(self, items):
            return items[0]

    unlike = 0
    for policy in make_policies().values():
        for problem in draw_problems(60, random.Random(1), shortest=5):
            whole = policy.solve(problem, Luck())
            unlike += whole[-1].value != problem.answer or len(whole) < 5
            for t in range(1, len(whole) + 1):
                assert whole[:t] + policy.solve(problem, Luck(), whole[:t]) == whole
    assert (unlike > 100) == (luck == 0.0)


def test_a_finished_solution_is_not_gone_on_with():
    policy = ArithmeticPolicy("skip")
    policy.submit(Request("7 a -2 b +1", ("b: 7 +1 =8",), 1, "key"))
    [(_, completion)] = policy.collect()
    assert completion == ("", True)


# ---- the command line -----------------------------------------------------------------------------------------------


def documented(kind: type) -> Iterator[tuple[str, str]]:
    """(name, docstring) of every field; a KeyError for one without."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    texts = {
        node.target.id: ast.literal_eval(below.value)
        for node, below in pairwise(body)
        if isinstance(node, ast.AnnAssign) and isinstance(below, ast.Expr)
    }
    types = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(types[field.name]):
            yield from documented(types[field.name])
        else:
            yield field.name, texts[field.name]


@pytest.mark.parametrize(("command", "config"), [("sample", SampleConfig), ("annotate", AnnotateConfig)])
def test_help_explains_every_option(command, config, capsys):
    assert main([command, "--help"]) == 0
    text = re.sub(r"[\s│╭╮╰╯─]", "", capsys.readouterr().out)
    for name, docstring in documented(config):
        assert f"--{name.replace('_', '-')}" in text
        assert re.sub(r"\s", "", docstring) in text, name


@pytest.mark.parametrize("command", ["sample", "annotate"])
def test_help_needs_no_heavy_package(command, tmp_path):
    code = (
        f"import sys; from pqm_fast.cli import main; code = main(['{command}', '--help'])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'sympy', 'math_verify'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--policy", "a", "--policy", "b"], ("a", "b")),
        (["--policy", "a", "b"], ("a", "b")),
        (["--policy=a", "--seed", "3", "--policy", "b", "c"], ("a", "b", "c")),
        (["--policy", "http://h:1/v1#m=x"], ("http://h:1/v1#m=x",)),
    ],
)
def test_policies_on_the_command_line(monkeypatch, tmp_path, arguments, expected):
    seen: list[SampleConfig] = []
    monkeypatch.setattr("pqm_fast.sample.run.sample", lambda config: seen.append(config) or Path("x"))
    assert main(["sample", "--data", "q.jsonl", *arguments, "-n", "9", "--out", "o"]) == 0
    file = tmp_path / "options.yaml"
    file.write_text("policy: [z, y]\ndata: q.jsonl\nn: 4\nout: o\nwriting: {parallel: 3}\n")
    assert main(["sample", "--config", str(file), *arguments]) == 0
    assert main(["sample", "--config", str(file)]) == 0
    assert [(c.policy, c.n) for c in seen] == [(expected, 9), (expected, 4), (("z", "y"), 4)]
    assert [c.writing for c in seen] == [PolicyOptions(), PolicyOptions(parallel=3), PolicyOptions(parallel=3)]


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
