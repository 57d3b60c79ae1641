"""Questions from records of every kind, and what is refused."""

import pytest
from worlds import questions, rows_of, sample, with_the_fields_of_a_pool, write

from pqm_fast.sample.read_questions import read_questions


def test_questions_of_other_kinds(tmp_path):
    rows = [
        {"question": "Why?", "answer": "so #### 4"},  # GSM8K
        {"problem": "How?", "solution": r"\boxed{4}", "level": 5},  # MATH
        {"problem": "How much?", "solution": "long", "answer": 4, "unique_id": "x"},  # MATH-500
        {"id": 7, "prompt": "Who?", "completions": ["a"], "labels": [1]},  # a labelled record
        {"question": "When?", "question_id": "q", "responses": [{"text": "a"}], "subject": "time"},  # a pool
    ]
    read = list(read_questions([str(write(tmp_path / "q.jsonl", rows))]))
    assert [(q.id, q.text, q.answer) for q in read] == [
        ("q:1", "Why?", "so #### 4"),
        ("q:2", "How?", r"\boxed{4}"),
        ("q:3", "How much?", 4),
        ("7", "Who?", None),
        ("q", "When?", None),
    ]
    assert read[1].extra == {"solution": r"\boxed{4}", "level": 5}
    assert read[3].extra == {}
    assert read[4].extra == {"subject": "time"}


def test_fields_of_a_pool_do_not_judge_the_new_solutions(tmp_path):
    """A row's fields are those of all its responses when a pool is read: one of them would override the new ones."""
    plain = write(tmp_path / "plain.jsonl", questions(3))
    pool = write(tmp_path / "pool.jsonl", list(map(with_the_fields_of_a_pool, questions(3))))
    for data in (plain, pool):
        assert sample(data, tmp_path / f"of-{data.name}", "arithmetic:careless", n=3) == 0
    rows = [{**row, "level": 5} for row in rows_of(tmp_path / "of-plain.jsonl")]
    assert rows == rows_of(tmp_path / "of-pool.jsonl")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('{"text": "Why?"}', "field question is missing (fields found: text)"),
        ('{"question": 5}', "question is 5 (int); it must be text"),
        ('{"question": " "}', "question is empty"),
        ('{"question": "Why?", "id": "a"}', "the id a is taken by"),
        ('{"question": "half \\ud83d"}', "question holds half a surrogate pair"),
        ("[1]", "is not a JSON object"),
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
