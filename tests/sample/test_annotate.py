"""Monte-Carlo labels in the arithmetic world, where the truth is known exactly."""

import os
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from openai_server import solve
from part_file import rows_in
from worlds import annotate, questions, rows_of, sample, write

from pqm_fast.arithmetic.policies import make_policies
from pqm_fast.arithmetic.problems import step_labels
from pqm_fast.arithmetic.world import write_world
from pqm_fast.cli import main
from pqm_fast.data import read_records
from pqm_fast.sample.arithmetic_policy import ArithmeticPolicy, parse_problem, parse_step

COMPLETER = "arithmetic:strong"


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """40 questions, four solutions of each by two policies that err in different ways."""
    folder = tmp_path_factory.mktemp("pool")
    data = write(folder / "questions.jsonl", questions(40))
    assert sample(data, folder / "pool.jsonl", "arithmetic:careless", "arithmetic:copy", n=4) == 0
    return folder / "pool.jsonl"


@pytest.fixture(scope="module")
def full(pool):
    assert annotate(pool, pool.parent / "full.jsonl", COMPLETER, rollouts=8) == 0
    return rows_of(pool.parent / "full.jsonl")


def solved(row):
    return parse_problem(row["prompt"]), [parse_step(step) for step in row["completions"]]


class Scripted(random.Random):
    """`random()` returns the given numbers, then 1."""

    def __init__(self, choices):
        super().__init__()
        self.choices, self.asked = choices, 0

    def random(self):
        self.asked += 1
        return self.choices[self.asked - 1] if self.asked <= len(self.choices) else 1.0


def chance_of_right(problem, steps_so_far, choices=()) -> float:
    """The exact chance: the only random choice is whether the completer errs at a weak spot, so follow both ways."""
    strong = make_policies()["strong"]
    rng = Scripted(choices)
    steps = strong.solve(problem, rng, steps_so_far)
    if rng.asked > len(choices):
        mistake = chance_of_right(problem, steps_so_far, (*choices, 0.0))
        no_mistake = chance_of_right(problem, steps_so_far, (*choices, 1.0))
        return strong.mistake_chance * mistake + (1 - strong.mistake_chance) * no_mistake
    return float((steps or steps_so_far)[-1].value == problem.answer)


def test_rollouts_follow_the_completers_exact_chance(full):
    """The counts are binomial with the chance that the completer ends right, which is known exactly here."""
    chi_squared = measured = 0.0
    seen = set()
    for row in full:
        problem, steps = solved(row)
        for t in range(1, len(steps)):
            p, k = chance_of_right(problem, steps[:t]), row["rollouts_right"][t - 1]
            assert row["rollouts"][t - 1] == 8
            if p in (0.0, 1.0):
                assert k == 8 * p
            elif (row["prompt"], *row["completions"][:t]) not in seen:  # others share its rollouts
                seen.add((row["prompt"], *row["completions"][:t]))
                chi_squared += (k - 8 * p) ** 2 / (8 * p * (1 - p))
                measured += 1
        assert row["rollouts"][-1] == 1  # a whole solution is its only rollout
        assert row["rollouts_right"][-1] == (steps[-1].value == problem.answer)
    assert measured > 50
    assert abs(chi_squared - measured) < 4 * (2 * measured) ** 0.5


def test_labels_agree_with_the_exact_ones(full):
    """Not all of them: a later slip may undo an error (then the completer's chance after a wrong step is not 0), and
    after a right step all eight rollouts may go wrong."""
    pairs = Counter()
    for row in full:
        problem, steps = solved(row)
        for t, (exact, label) in enumerate(zip(step_labels(problem, steps), row["labels"], strict=True), 1):
            pairs[exact, label] += 1
            if exact and not label:
                assert chance_of_right(problem, steps[:t]) < 0.7
            if label and not exact:
                assert chance_of_right(problem, steps[:t]) > 0
    total = pairs.total()
    assert total > 1000
    assert min(pairs[True, 1.0], pairs[False, 0.0]) > 200
    assert pairs[True, 0.0] / total < 0.01
    assert pairs[False, 1.0] / total < 0.03


def test_soft_labels_are_the_shares(pool, full, tmp_path):
    assert annotate(pool, tmp_path / "soft.jsonl", COMPLETER, rollouts=8, label="soft") == 0
    soft = rows_of(tmp_path / "soft.jsonl")
    for row, hard in zip(soft, full, strict=True):
        shares = [k / n for k, n in zip(row["rollouts_right"], row["rollouts"], strict=True)]
        assert row["labels"] == shares
        assert hard["labels"] == [float(share > 0) for share in shares]
        assert {k: v for k, v in row.items() if k != "labels"} == {k: v for k, v in hard.items() if k != "labels"}
    assert {0.0, 1.0} < {label for row in soft for label in row["labels"]}


def prefixes(rows):
    """The prefixes to measure, each once."""
    return {(row["prompt"], *row["completions"][:t]) for row in rows for t in range(1, len(row["completions"]))}


def test_binary_search_finds_the_same_first_errors_in_fewer_rollouts(pool, full, tmp_path, capfd):
    capfd.readouterr()
    assert annotate(pool, tmp_path / "binary.jsonl", COMPLETER, rollouts=8, search="binary") == 0
    [fewer] = re.findall(r"([\d,]+) rollouts of [\d,]+ prefixes", capfd.readouterr().out)
    assert int(fewer.replace(",", "")) < 0.6 * 8 * len(prefixes(full))
    monotone = 0
    for row, whole in zip(rows_of(tmp_path / "binary.jsonl"), full, strict=True):
        for name in ("rollouts", "rollouts_right"):  # both searches measure a prefix alike
            assert all(a in (None, b) for a, b in zip(row[name], whole[name], strict=True))
        if whole["labels"] != sorted(whole["labels"], reverse=True):
            continue
        monotone += 1
        first = whole["labels"].index(0.0) if 0.0 in whole["labels"] else len(whole["labels"])
        assert row["labels"] == [y if t <= first else None for t, y in enumerate(whole["labels"])]
    assert monotone > 250


def test_solutions_that_begin_alike_share_their_rollouts(pool, tmp_path, monkeypatch):
    asked = Counter()
    original = ArithmeticPolicy._complete
    monkeypatch.setattr(
        ArithmeticPolicy,
        "_complete",
        lambda self, r: asked.update([(r.question, r.steps, r.seed)]) or original(self, r),
    )
    assert annotate(pool, tmp_path / "out.jsonl", COMPLETER, rollouts=2) == 0
    rows = rows_of(tmp_path / "out.jsonl")
    assert set(asked.values()) == {1}
    assert len({seed for _, _, seed in asked}) == len(asked) == 2 * len(prefixes(rows))
    assert len(prefixes(rows)) < 0.8 * sum(len(row["completions"]) - 1 for row in rows)


@pytest.mark.parametrize(("search", "lost"), [("full", 7), ("binary", 0), ("full", None)])
def test_interrupted_annotation_resumes(pool, tmp_path, monkeypatch, search, lost):
    options = {"rollouts": 3, "search": search}
    assert annotate(pool, tmp_path / "whole.jsonl", COMPLETER, **options) == 0
    total = []
    original = ArithmeticPolicy._complete

    def counted(self, request):
        total.append(request)
        if len(total) == 400:
            raise KeyboardInterrupt
        return original(self, request)

    out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    monkeypatch.setattr(ArithmeticPolicy, "_complete", counted)
    assert annotate(pool, out, COMPLETER, **options) == 130
    assert rows_in(part) == 399
    os.truncate(part, part.stat().st_size - lost if lost is not None else 0)
    left = rows_in(part)
    first = len(total)
    assert annotate(pool, out, COMPLETER, **options) == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    whole_run = len({(r.question, r.steps, r.seed) for r in total})
    assert len(total) - first == whole_run - left
    assert not list(tmp_path.glob("out.jsonl.part*"))


def test_everything_done_but_the_last_write(pool, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr("pqm_fast.sample.annotate._write", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        assert annotate(pool, out, COMPLETER, rollouts=1) == 130
    monkeypatch.setattr(ArithmeticPolicy, "__init__", None)  # no longer needed
    assert annotate(pool, out, COMPLETER, rollouts=1) == 0
    assert len(rows_of(out)) == 320


def test_a_step_that_was_cut_off_is_measured_like_any_other(tmp_path):
    """The last step of a whole solution needs no rollout, that of one cut off at the token limit does."""
    row = {"prompt": "7 a -2 b +1", "completions": ["a: 7 -2 =5"], "answer": 6}
    data = write(tmp_path / "d.jsonl", [row, row | {"finish_reason": "length"}, row | {"finish_reason": "stop"}])
    assert annotate(data, tmp_path / "out.jsonl", "arithmetic:strong", rollouts=4) == 0
    whole, cut, stopped = rows_of(tmp_path / "out.jsonl")
    assert (whole["rollouts"], whole["labels"]) == (stopped["rollouts"], stopped["labels"]) == ([1], [0.0])
    assert (cut["rollouts"], cut["labels"]) == ([4], [1.0])


def test_rollouts_that_never_end_or_are_empty_count_as_wrong(serve, tmp_path):
    row = {"prompt": "7 a -2 b +0", "completions": ["a: 7 -2 =5", "b: 5 +0 =5"], "answer": "5", "id": "r"}
    data = write(tmp_path / "d.jsonl", [row])
    for name, choice, label in [
        ("stopped", {"text": "b: 5 +0 =5", "finish_reason": "stop"}, 1.0),
        ("cut off", {"text": "b: 5 +0 =5", "finish_reason": "length"}, 0.0),
        ("empty", {"text": "", "finish_reason": "stop"}, 0.0),
        ("marked, then on and on", {"text": r"\boxed{5} and 6" + " 7" * 5000, "finish_reason": "length"}, 1.0),
        ("LaTeX without end", {"text": r"\boxed{\frac{" * 5000, "finish_reason": "stop"}, 0.0),
        ("a sign of fonts", {"text": r"\boxed{−5}", "finish_reason": "stop"}, 0.0),
    ]:
        server = serve(lambda body, choice=choice: choice)
        assert annotate(data, tmp_path / f"{name}.jsonl", server.policy, rollouts=2) == 0
        [row] = rows_of(tmp_path / f"{name}.jsonl")
        assert row["labels"] == [label, 1.0], name


@pytest.mark.usefixtures("short_judging")
def test_a_hostile_answer_does_not_hang_the_run(serve, tmp_path):
    row = {"prompt": "Why?", "completions": ["x", r"\boxed{x^2}"], "answer": "x^2", "id": "r"}
    server = serve(lambda body: r"\boxed{\sum_{k=1}^{3} 7^{99999999 k}}")
    with pytest.warns(UserWarning, match="no value of"):
        assert annotate(write(tmp_path / "d.jsonl", [row]), tmp_path / "out.jsonl", server.policy, rollouts=3) == 0
    [row] = rows_of(tmp_path / "out.jsonl")
    assert row["labels"] == [0.0, 1.0]


def test_labelled_records_train(pool, full, tmp_path):
    """`train` reads the output with its labels."""
    world = write_world(tmp_path / "world", problems=5, test_problems=5)
    data = pool.parent / "full.jsonl"
    records = list(read_records(data))
    assert [record.labels for record in records] == [row["labels"] for row in full]
    assert {"rollouts", "rollouts_right", "policy", "answer", "question_id"} <= records[0].extra.keys()
    arguments = ["--model", world.model, "--data", data, "--out", tmp_path / "run", "--step-token", "last"]
    options = ["--max-steps", "2", "--device", "cpu", "--no-progress", "--cache-dir", tmp_path / "cache"]
    assert main(["train", *map(str, [*arguments, *options])]) == 0


# ---- what cannot be labelled ----------------------------------------------------------------------------------------


@pytest.fixture
def fails(capfd, tmp_path):
    def run(data: Path, *parts: str, policy: str = COMPLETER, **options) -> None:
        before = sorted(tmp_path.iterdir())
        capfd.readouterr()
        assert annotate(data, tmp_path / "out.jsonl", policy, **options) == 1
        error = capfd.readouterr().err
        assert error.count("error:") == 1
        assert "Traceback" not in error
        for part in parts:
            assert part in error
        assert sorted(tmp_path.iterdir()) == before

    return run


GOOD = {"id": "good", "prompt": "7 a -2 b +1", "completions": ["a: 7 -2 =5", "b: 5 +1 =6"], "answer": "6"}


def test_bad_input(fails, tmp_path, pool):
    no_answer = write(
        tmp_path / "no_answer.jsonl", [GOOD, {k: v for k, v in GOOD.items() if k != "answer"} | {"id": "b"}]
    )
    fails(no_answer, f"{no_answer}: record b: no `answer`; add the right answer")
    other = write(tmp_path / "other.jsonl", [GOOD | {"prompt": "What is 7 - 2?"}])
    fails(other, "record good: 'What is 7 - 2?' is not from the arithmetic world", "--skip-bad")
    odd = write(tmp_path / "odd.jsonl", [GOOD | {"completions": ["seven", "six"]}])
    fails(odd, "record good: 'seven' is not from the arithmetic world")
    fails(tmp_path / "gone.jsonl", "gone.jsonl: no file")
    good = write(tmp_path / "good.jsonl", [GOOD])
    fails(good, "policy arithmetic:wise: choose one of facts, sign", policy="arithmetic:wise")
    fails(good, "policy arithmetic:strong:x", policy="arithmetic:strong:x")
    fails(good, "rollouts: 0 was given; it must be at least 1", rollouts=0)
    fails(good, "label soft: binary search measures too few", search="binary", label="soft")
    (tmp_path / "out.jsonl").write_text("")
    fails(good, "out.jsonl: exists already; delete it or choose another --out")


def test_skip_bad(tmp_path, capfd):
    rows = [
        GOOD | {"id": "a"},
        {k: v for k, v in GOOD.items() if k not in ("answer", "id")},
        GOOD | {"id": "from another world", "prompt": "What is 7 - 2?"},
        GOOD | {"id": "no steps", "completions": []},
        GOOD | {"id": "b", "completions": ["a: 7 -2 =4", "b: 4 +1 =5"]},
    ]
    data = write(tmp_path / "d.jsonl", rows)
    assert annotate(data, tmp_path / "out.jsonl", COMPLETER, skip_bad=True) == 0
    assert [row["id"] for row in rows_of(tmp_path / "out.jsonl")] == ["a", "b"]
    out = capfd.readouterr().out
    assert "skipped 3 bad records (" in out
    for kind in ("1 no answer", "1 refused", "1 no steps"):
        assert kind in out
    data = write(tmp_path / "none.jsonl", [rows[2]])
    assert annotate(data, tmp_path / "none.out", COMPLETER, skip_bad=True) == 1
    assert "no usable record. skipped 1 bad record (1 refused)" in capfd.readouterr().err


def test_another_run_does_not_resume_this_one(pool, tmp_path, monkeypatch, capfd):
    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr("pqm_fast.sample.annotate._write", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        assert annotate(pool, out, COMPLETER, rollouts=1) == 130
    for options, name in [
        ({"rollouts": 2}, "rollouts (1 then, 2 now)"),
        ({"rollouts": 1, "seed": 3}, "seed (0 then, 3 now)"),
        ({"rollouts": 1, "temperature": 0.9}, "temperature (0.7 then, 0.9 now)"),
        ({"rollouts": 1, "search": "binary"}, "search ('full' then, 'binary' now)"),
    ]:
        assert annotate(pool, out, COMPLETER, **options) == 1
        assert f"{out}.part: was started with other options: {name}; delete it to start over" in capfd.readouterr().err
    # options that do not affect the rollouts may change, even how labels are made from the counts
    assert annotate(pool, out, COMPLETER, rollouts=1, label="soft", parallel=3, retries=1) == 0


def test_the_servers_arithmetic_is_that_of_the_policy():
    body = {"prompt": "7 a -2 b +1\na: 7 -2 =5\n", "seed": 3}
    assert solve(body, "strong") == "b: 5 +1 =6"
