"""Pools of the published files: how solutions are cut into steps, where answers come from, and what is refused."""

import json
from pathlib import Path

import huggingface_hub
import pytest

from pqm_fast.data.read import read_records
from pqm_fast.errors import PQMError
from pqm_fast.reproduce.options import ReproduceConfig
from pqm_fast.reproduce.pools import prepare_pools


@pytest.fixture
def pools(tmp_path):
    """Prepares pools of one file with these questions; options override."""

    def prepare(questions, answers=(("q1", "7"),), **options):
        file = tmp_path / "pool.json"
        file.write_text(json.dumps(questions), encoding="utf-8")
        known = tmp_path / "answers.jsonl"
        known.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in answers), encoding="utf-8")
        defaults = {
            "out": str(tmp_path / "out"),
            "pools": (str(file),),
            "answers": (str(known),) if answers else (),
            "n": (1,),
        }
        return prepare_pools(ReproduceConfig("pqm", **(defaults | options)))

    return prepare


def records(prepared):
    [file] = prepared.files.values()
    return list(read_records(file))


def responses(*texts, **fields):
    return [{"question": "q1", "responses": [{"text": text, **fields} for text in texts]}]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (" 3 + 4\nStep 2: 7\n\nStep 3: so 7", ["Step 1: 3 + 4", "Step 2: 7", "Step 3: so 7"]),
        ("Step 1: a\nb\nc Step 2: d", ["Step 1: a\nb\nc", "Step 2: d"]),
        ("Step 4: a Step 9: b", ["Step 1: a", "Step 2: b"]),
        ("no steps at all", ["Step 1: no steps at all"]),
        ("Step 1: Step 2: x", ["Step 1: x"]),
        ("  ", ["(empty completion)"]),
    ],
)
def test_steps(pools, text, steps):
    [record] = records(pools(responses(text)))
    assert record.steps == steps
    assert record.prompt == "q1"


def test_answers_policies_and_order(pools):
    texts = ["The answer is: 8", "Step 1: 7 Step 2: The answer is: 7", ""]
    found = records(pools([{"question": " q1 ", "responses": [{"text": text} for text in texts]}]))
    assert [record.extra["correct"] for record in found] == [0.0, 1.0, 0.0]
    assert {record.extra["policy"] for record in found} == {"pool"}  # the name of the file
    assert len({record.extra["question_id"] for record in found}) == 1


def test_what_the_pool_says_wins(pools):
    questions = [
        {"question": "q1", "answer": 9, "responses": [{"text": "The answer is: 9", "model_name": "m"}]},
        {"question": "q2", "responses": [{"text": "5", "correct": True}, {"steps": ["6"], "correct": False}]},
    ]
    found = records(pools(questions))
    assert [(r.extra["policy"], r.extra["correct"]) for r in found] == [("m", 1.0), ("pool", 1.0), ("pool", 0.0)]
    assert found[2].steps == ["6"]


def test_one_answer_in_two_notations(pools):
    known = (("q1", "7"), ("q1", "7.0"), ("q1", r"so \boxed{7}"))
    assert [r.extra["correct"] for r in records(pools(responses("7", "8"), known))] == [1.0, 0.0]


def test_a_policy_with_too_few_solutions_is_left_out(pools, tmp_path):
    questions = [{"question": "q1", "responses": [{"text": "7"}] * count} for count in (2, 1)]
    prepared = pools(questions, n=(1, 2))
    assert len(records(prepared)) == 2
    assert prepared.left_out == [
        f"{tmp_path / 'pool.json'}: 1 groups of one policy and question left out: fewer than 2 candidates"
    ]


@pytest.mark.parametrize(
    ("questions", "answers", "message"),
    [
        (responses("7"), (("q2", "7"),), "pool.json, record 1: no right answer to 'q1'; give an `answer`, or its data"),
        (responses("7"), (), "no right answer to 'q1'"),
        (responses("7"), (("q1", "7"), ("q1", "8")), r"different right answers \(7, 8\) to 'q1'"),
        ([{"question": "q1"}], (("q1", "7"),), "record 1: field responses is missing"),
        ([{"responses": [{"text": "7"}]}], (("q1", "7"),), "record 1: field question is missing"),
        ([{"question": "q1", "responses": ["x"]}], (("q1", "7"),), "response 1: it is 'x'"),
        ([{"question": "q1", "responses": [{"x": 1}]}], (("q1", "7"),), "response 1: field text is missing"),
        (["x"], (("q1", "7"),), "record 1: is not a JSON object"),
    ],
)
def test_bad_pools(pools, questions, answers, message, tmp_path):
    with pytest.raises(PQMError, match=message) as raised:
        pools(questions, answers)
    assert "out/pools" not in str(raised.value)  # nothing of where we write
    assert not (tmp_path / "out" / "pools").exists()


def test_more_candidates_than_any_question_has(pools, tmp_path):
    with pytest.raises(PQMError, match=r"pool\.json: no policy has 3 candidates of any question; choose a smaller --n"):
        pools(responses("7", "8"), n=(1, 3))


@pytest.mark.parametrize("name", ["nowhere.json", "no/where.json"])
def test_no_such_pool(pools, name):
    with pytest.raises(PQMError, match=f"{name}: no"):
        pools(responses("7"), pools=(name,))


def test_two_pools_of_one_name(pools, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.json").write_text(json.dumps(responses("7")), encoding="utf-8")
    files = tuple(str(tmp_path / folder / "same.json") for folder in ("a", "b"))
    with pytest.raises(PQMError, match="has this name too; rename one of the files"):
        pools(responses("7"), pools=files)


def test_a_folder_of_a_model_on_the_hub(pools, tmp_path, monkeypatch):
    """As the published pools are: files in a folder of the repository of the model; or one of the files."""
    asked = []

    def fetched(model, allow_patterns):
        assert model == "Windy0822/PQM"
        asked.append(allow_patterns)
        folder = tmp_path / "snapshot" / "eval_data"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "math-muggle-128.json").write_text(json.dumps(responses("7")), encoding="utf-8")
        return str(folder.parent)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    monkeypatch.chdir(tmp_path)
    assert list(pools([], pools=ReproduceConfig.pools).files) == ["math-muggle-128"]
    file = "eval_data/math-muggle-128.json"
    assert list(pools([], pools=(f"Windy0822/PQM/{file}",), out=str(tmp_path / "b")).files) == ["math-muggle-128"]
    assert asked == [["eval_data", "eval_data/*"], [file, f"{file}/*"]]


@pytest.mark.parametrize(
    ("fetch", "message"),
    [
        (lambda *_, **__: 1 / 0, r"cannot be fetched from the model org/name on the hub either \(ZeroDivisionError"),
        (lambda *_, **__: str(Path(__file__).parent), "the model org/name on the hub has no file or folder eval"),
    ],
)
def test_a_folder_that_is_not_on_the_hub(pools, monkeypatch, fetch, message):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(PQMError, match=message):
        pools(responses("7"), pools=("org/name/eval",))
