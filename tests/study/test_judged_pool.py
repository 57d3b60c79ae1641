"""Judged pools, and Best-of-N from them compared with `evaluate_pools`."""

import json

import numpy as np
import pytest

from pqm_fast.data import read_records
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.read import read_all
from pqm_fast.errors import PQMError
from pqm_fast.evaluate import evaluate_pools
from pqm_fast.evaluate.aggregate import AGGREGATORS
from pqm_fast.study.judged_pool import read_judged_pool, write_judged_pool


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def candidate(question, policy, steps, **extra):
    return {"prompt": f"Q {question}?", "completions": steps, "question_id": question, "policy": policy} | extra


def responses(policy, *answers):
    return [{"text": f"so\nit is {answer}", "model_name": policy} for answer in answers]


@pytest.fixture
def files(tmp_path):
    """Two formats, judged by `answer`, by `correct` and by both; one policy is missing, another is too small."""
    pool = [
        {"id": "p1", "question": "Q 1?", "answer": "4", "responses": responses("weak", 4, 5, 6)},
        {"id": "p2", "question": "Q 2?", "answer": "#### 7", "responses": responses("weak", 7, 8, 7)},
    ]
    pool[0]["responses"] += responses("strong", 4, "4.0", 14, 9)
    pool[1]["responses"] += responses("strong", 7)
    flat = [
        candidate("p3", "strong", ["it is 3"], correct=0.5),
        candidate("p3", "strong", ["it is 3"], correct=True),
        candidate("p3", "strong", ["a", "b"], correct=False, answer="3", labels=[1, None]),
        candidate("p3", "strong", ["c", "it is 3"], answer="3", correct=0),
    ]
    return [lines(tmp_path / "pool.jsonl", pool), lines(tmp_path / "flat.jsonl", flat)]


def q(record):
    """Q-values that depend on the text alone, with many ties; some last steps are cut off."""
    own = [float((sum(map(ord, step)) + t) % 3) for t, step in enumerate(record.steps)]
    return [*own[:-1], None] if sum(map(ord, "".join(record.steps))) % 4 == 1 else own


def test_the_scores_of_these_tests_have_ties_and_gaps(files):
    scores = [tuple(q(record)) for record in read_all(files)]
    assert len(set(scores)) < len(scores)
    assert any(own[-1] is None for own in scores)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_best_of_n_is_that_of_evaluate(tmp_path, files, n):
    left_out = write_judged_pool(files, ReadOptions(), n, tmp_path / "out" / "judged.jsonl")
    pool = read_judged_pool(tmp_path / "out" / "judged.jsonl")
    original = [(record, q(record)) for record in read_all(files)]
    ns = list(range(1, n + 1))
    scores = [q(record) for record in pool.records]
    assert list(pool.members) == ["strong", "weak"]
    assert pool.questions == ["p1", "p2", "p3"]
    compared = 0
    for how in AGGREGATORS:
        picked = pool.best_of_n(scores, how, ns, temperature=0.5)
        assert picked.shape == (2, 3, n)
        for k, question in enumerate(pool.questions):
            own = [pair for pair in original if pair[0].extra["question_id"] == question]
            expected = evaluate_pools(own, how=(how,), ns=ns, temperature=0.5)["policies"]
            for p, policy in enumerate(pool.members):
                figures = expected.get(policy, {"best_of_n": {how: {}}})["best_of_n"][how]
                if str(n) not in figures:  # fewer than n: left out for smaller ones too
                    assert np.isnan(picked[p, k]).all()
                    continue
                assert picked[p, k] == pytest.approx([figures[str(m)]["mean"] for m in ns])
                compared += 1
    assert compared == len(AGGREGATORS) * (5 if n == 1 else 4)
    if n == 1:
        assert left_out == []
    else:
        named = ", ".join(files)
        assert left_out == [f"{named}: 1 groups of one policy and question left out: fewer than {n} candidates"]


def test_what_is_kept_of_a_candidate(tmp_path, files):
    write_judged_pool(files, ReadOptions(), 1, tmp_path / "judged.jsonl")
    pool = read_judged_pool(tmp_path / "judged.jsonl")
    rows = {
        (r.extra["question_id"], r.extra["policy"], tuple(r.steps), c)
        for r, c in zip(pool.records, pool.correct, strict=True)
    }
    assert rows == {
        *(("p1", "weak", ("so", f"it is {a}"), c) for a, c in ((4, 1), (5, 0), (6, 0))),
        *(("p1", "strong", ("so", f"it is {a}"), c) for a, c in ((4, 1), ("4.0", 1), (14, 0), (9, 0))),
        *(("p2", "weak", ("so", f"it is {a}"), c) for a, c in ((7, 1), (8, 0))),
        ("p2", "strong", ("so", "it is 7"), 1),
        *(("p3", "strong", ("it is 3",), c) for c in (0.5, 1)),
        ("p3", "strong", ("a", "b"), 0),
        ("p3", "strong", ("c", "it is 3"), 0),  # `correct` before `answer`
    }
    assert [r.labels for r in pool.records if r.labels is not None] == [[1, None]]
    again = tmp_path / "again.jsonl"  # what was judged may be judged again
    write_judged_pool([str(tmp_path / "judged.jsonl")], ReadOptions(), 1, again)
    assert [r.extra["correct"] for r in read_records(again)] == pool.correct.tolist()


def test_candidates_without_a_policy_are_one(tmp_path):
    rows = [candidate("p", None, ["it is 1"], answer="1"), candidate("p", "a", ["it is 2"], answer="1")]
    rows.append({"prompt": "Q p?", "completions": ["it is 2"], "question_id": "p", "answer": "1"})
    write_judged_pool([lines(tmp_path / "a.jsonl", rows)], ReadOptions(), 1, tmp_path / "judged.jsonl")
    pool = read_judged_pool(tmp_path / "judged.jsonl")
    assert {policy: [len(own) for own in groups.values()] for policy, groups in pool.members.items()} == {
        "a": [1],
        "all": [2],
    }


def test_questions_of_a_number_for_an_id(tmp_path):
    rows = [candidate(1, "a", ["it is 1"], answer=1), candidate("1", "a", ["it is 2"], answer=1)]
    write_judged_pool([lines(tmp_path / "a.jsonl", rows)], ReadOptions(), 2, tmp_path / "judged.jsonl")
    assert read_judged_pool(tmp_path / "judged.jsonl").questions == ["1"]


GOOD = candidate("p", "a", ["it is 1"], answer="1")
BAD = [
    ({"prompt": "Q?", "completions": ["s"], "answer": "1"}, "is no candidate of a pool (no question_id)"),
    ({**GOOD, "question_id": None}, "is no candidate of a pool (no question_id)"),
    ({**GOOD, "answer": None}, "neither `answer` nor `correct` says whether it is right"),
    ({**GOOD, "correct": "yes"}, "correct is 'yes'; give true, false or a number from 0 to 1"),
    ({**GOOD, "correct": 1.5}, "correct is 1.5; give true, false or a number from 0 to 1"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_records_that_are_no_candidates(tmp_path, row, message):
    file = lines(tmp_path / "a.jsonl", [GOOD, row])
    with pytest.raises(PQMError) as found:
        write_judged_pool([file], ReadOptions(), 1, tmp_path / "judged.jsonl")
    assert message in str(found.value)
    assert str(found.value).startswith(f"{file}: record a:2")


def test_no_policy_has_enough(tmp_path, files):
    with pytest.raises(PQMError, match="no policy has 5 candidates of any question; choose a smaller --n"):
        write_judged_pool(files, ReadOptions(), 5, tmp_path / "judged.jsonl")


def test_one_id_of_two_questions_is_refused(tmp_path):
    """Otherwise two pools that both number their questions from 0 would be merged, half of it with wrong answers."""
    rows = [GOOD, {**GOOD, "prompt": "Another?", "answer": "2"}]
    files = [lines(tmp_path / f"{i}.jsonl", [row]) for i, row in enumerate(rows)]
    with pytest.raises(PQMError) as found:
        write_judged_pool(files, ReadOptions(), 1, tmp_path / "judged.jsonl")
    assert "question_id p is of two questions" in str(found.value)
