import math
from collections import Counter
from pathlib import Path

import pytest
from report_files import solution, write_lines

from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError
from pqm_fast.report.runs import Run
from pqm_fast.report.solutions import choose_solutions, how_wrong


def run_of(path, rows):
    return Run(path, path.stem, scored=[write_lines(path, rows)])


def p(q):
    return 1 / (1 + math.exp(-q))


@pytest.mark.parametrize(
    ("scores", "labels", "correct", "expected"),
    [
        ([2.0, -1.0], [1.0, 1.0], None, (1 - p(-1.0), 1)),
        ([2.0, -1.0], [0.0, 0.0], None, (p(2.0), 0)),
        ([0.0, None], [0.25, 1.0], None, (0.25, 0)),
        ([None, 3.0], [0.0, None], False, (p(3.0), 1)),  # no step has both: the outcome
        ([1.0, -2.0], None, True, (1 - p(-2.0), 1)),
        ([1.0, -2.0], None, 0.5, (0.5 - p(-2.0), 1)),
        ([1.0, -2.0], None, None, (None, None)),
        ([None], None, True, (None, None)),
        ([1e4, -1e4], [1.0, 0.0], None, (0.0, 0)),
        ([-1e4], [1.0], None, (1.0, 0)),
    ],
)
def test_how_wrong(scores, labels, correct, expected):
    extra = {} if correct is None else {"correct": correct}
    found = how_wrong(Record("a", "Q", ["s"] * len(scores), labels, extra), scores)
    assert found == (pytest.approx(expected[0]), expected[1])


def test_all_are_shown_where_they_fit(tmp_path):
    rows = [solution("a", [1.23456, None], [1.0, None], policy="x", correct=True, answer="2"), solution("b", [0.5])]
    found = choose_solutions([Run(tmp_path, "none"), run_of(tmp_path / "s.jsonl", rows)], 2)
    assert found["prompts"] == ["What is 1 + 1?"]
    first, second = found["items"]
    assert first.pop("wrong") == pytest.approx(1 - p(1.23456))
    assert first == {
        "run": 1, "prompt": 0, "id": "a", "steps": ["a step 1", "a step 2"], "labels": [1.0, None],
        "q": {1: [1.2346, None]}, "at": 0, "policy": "x", "correct": True, "answer": "2", "copies": 1,
        "position": "none",
    }  # fmt: skip
    assert (second["labels"], second["wrong"], second["at"]) == (None, None, None)
    assert (found["total"], found["distinct"], found["worst"]) == (2, 2, None)


def test_the_worst_and_a_random_sample(tmp_path):
    rows = [solution(f"s{i}", [-i / 50], [1.0]) for i in range(200)]
    run = run_of(tmp_path / "s.jsonl", rows)
    found = choose_solutions([run], 20)
    numbers = [int(item["id"][1:]) for item in found["items"]]
    assert len(set(numbers)) == 20
    assert set(range(190, 200)) <= set(numbers)
    assert min(numbers) < 100  # of ten random ones
    assert (found["total"], found["worst"]) == (200, 10)
    assert [item["id"] for item in choose_solutions([run], 20)["items"]] == [item["id"] for item in found["items"]]
    assert [item["id"] for item in choose_solutions([run], 20, seed=1)["items"]] != [
        item["id"] for item in found["items"]
    ]
    assert choose_solutions([run], 0)["items"] == []


def test_the_sample_holds_as_many_of_each_type_as_there_are(tmp_path):
    kinds = ["common"] * 90 + ["rare"] * 2 + ["other"] * 8
    rows = [solution(f"s{i}", [-i / 100], [1.0], error_type=kind, task=f"t{i % 2}") for i, kind in enumerate(kinds)]
    rows += [solution("null", [0.0], [1.0], error_type=None), solution("untyped", [0.1], [1.0])]
    found = choose_solutions([run_of(tmp_path / "s.jsonl", rows)], 20)
    # the ten most wrong ones are the other and the rare ones; of the ten at random nine are common, one is null
    assert Counter(item.get("type") for item in found["items"]) == {
        "common": 8, "other": 8, "rare": 2, "none": 1, None: 1,
    }  # fmt: skip
    assert found["by"] == "error_type"
    ids = [item["id"] for item in found["items"]]
    assert [item["id"] for item in choose_solutions([run_of(tmp_path / "s.jsonl", rows)], 20)["items"]] == ids
    by_task = choose_solutions([run_of(tmp_path / "s.jsonl", rows)], 20, by="task")["items"]
    assert Counter(item.get("type") for item in by_task) == {"t0": 9, "t1": 9, None: 2}


@pytest.mark.parametrize(
    ("labels", "position"),
    [
        ([0.0, 1.0], "1"),
        ([1.0, 0.25, 0.0], "2"),
        ([1.0] * 3 + [0.0], "3–4"),
        ([None] * 4 + [0.0], "5–8"),
        ([1.0] * 16 + [0.0], "17–32"),
        ([1.0, 0.5, None], "none"),
        ([None, None], None),
        (None, None),
    ],
)
def test_where_the_first_error_is(tmp_path, labels, position):
    [item] = choose_solutions([run_of(tmp_path / "s.jsonl", [solution("a", [0.0] * len(labels or "a"), labels)])], 1)[
        "items"
    ]
    assert item.get("position") == position


def test_what_each_model_does_about_a_first_error(tmp_path):
    """Two models on the same solutions; one of them did not score the last, and there is one that nobody labelled."""
    labels = [[1.0, 0.0, 1.0] if i % 2 else [1.0, 1.0, 1.0] for i in range(20)]
    name = lambda i: {"prompt": f"Question {i}?"}  # noqa: E731
    good = [solution(f"s{i}", [2.0, 3.0 * y[1] - 1, 2.0], y) | name(i) for i, y in enumerate(labels)]
    poor = [row | {} for row in good]
    for i, scores in ((0, [-3.0, 2.0, 2.0]), (1, [-3.0, -1.0, 2.0]), (3, [2.0, 2.0, -3.0]), (5, [2.0, 2.0, 2.0])):
        poor[i]["scores"] = scores
    good.append(solution("unlabelled", [-3.0]))
    found = choose_solutions([run_of(tmp_path / "good.jsonl", good), run_of(tmp_path / "poor.jsonl", poor[:-1])], 100)
    items = {(item["run"], item["id"]): item for item in found["items"]}
    assert items[0, "s0"]["first"] == {0: ("alone", None), 1: ("early", 0)} == items[1, "s0"]["first"]
    assert items[0, "s1"]["first"] == {0: ("found", 1), 1: ("early", 0)}
    assert items[0, "s3"]["first"] == {0: ("found", 1), 1: ("missed", 2)}
    assert items[0, "s5"]["first"] == {0: ("found", 1), 1: ("missed", None)}
    assert items[1, "s7"]["first"] == {0: ("found", 1), 1: ("found", 1)}
    assert items[0, "s19"]["first"] == {0: ("found", 1)}
    assert "first" not in items[0, "unlabelled"]
    assert items[0, "s3"]["q"] == items[1, "s3"]["q"] == {0: good[3]["scores"], 1: poor[3]["scores"]}
    assert items[0, "s19"]["q"] == {0: good[19]["scores"]}
    # where each has a share of two, a solution that only one of them shows has the scores of both
    few = choose_solutions([run_of(tmp_path / "good.jsonl", good), run_of(tmp_path / "poor.jsonl", poor)], 4)["items"]
    assert [item["run"] for item in few] == [0, 0, 1, 1]
    assert all(len(item["q"]) == 2 for item in few if item["id"] != "unlabelled")


def test_each_run_has_its_share(tmp_path):
    runs = [
        run_of(tmp_path / f"{q}.jsonl", [solution(f"s{i}", [q + i / 100], [0.0]) for i in range(50)]) for q in (0, 5)
    ]
    found = choose_solutions(runs, 20)
    assert [item["run"] for item in found["items"]] == [0] * 10 + [1] * 10


def test_copies_are_shown_once(tmp_path):
    same = {"completions": ["the same"], "policy": "x"}
    rows = [solution(f"s{i}", [1.0], **same) for i in range(3)]
    rows += [solution("other policy", [1.0], **{**same, "policy": "y"}), solution("other label", [1.0], [0.0], **same)]
    found = choose_solutions([run_of(tmp_path / "s.jsonl", rows)], 10)
    assert [(item["id"], item["copies"]) for item in found["items"]] == [
        ("s0", 3),
        ("other policy", 1),
        ("other label", 1),
    ]
    assert (found["total"], found["distinct"]) == (5, 3)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (None, "no `scores`; run `pqm-fast score` first"),
        ([1.0], r"scores \[1.0\] for 2 steps"),
        ([1.0, float("nan")], "score nan"),
        ([1.0, "2"], "score '2'"),
        ([1.0, True], "score True"),
    ],
)
def test_bad_scores_are_named(tmp_path, scores, message):
    row = solution("bad", [1.0, 2.0]) | {"scores": scores}
    path = tmp_path / "s.jsonl"
    with pytest.raises(PQMError, match=message) as error:
        choose_solutions([run_of(path, [row])], 10)
    assert str(error.value).startswith(f"{path}: record bad: ")


def test_a_file_of_something_else(tmp_path):
    path = write_lines(tmp_path / "s.jsonl", [{"a": 1}])
    with pytest.raises(PQMError, match=r"s.jsonl, line 1: fields a are of no known format"):
        choose_solutions([Run(Path("s"), "s", scored=[path])], 10)


def test_correctness_is_shown_as_the_file_states_it_or_not_at_all(tmp_path):
    stated = [True, 1.0, 0, 7, "yes", "C", None]
    rows = [solution(f"s{i}", [1.0], correct=value, policy=i, answer=str(i)) for i, value in enumerate(stated)]
    items = choose_solutions([run_of(tmp_path / "s.jsonl", rows)], 10)["items"]
    assert [repr(item.get("correct")) for item in items] == ["True", "1.0", "0", *["None"] * 4]
    assert [(item["policy"], item["answer"]) for item in items] == [(i, str(i)) for i in range(len(stated))]
    assert [item["wrong"] is None for item in items] == [False] * 3 + [True] * 4
