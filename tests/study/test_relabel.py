"""Records with other labels than in the data."""

import json
import math

import pytest

from pqm_fast.data import read_records
from pqm_fast.data.formats import ReadOptions
from pqm_fast.errors import PQMError
from pqm_fast.study.relabel import LabelKind, parse_label_kind, write_relabelled


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("given", LabelKind("given")),
        ("first-error", LabelKind("first-error")),
        ("monte-carlo", LabelKind("monte-carlo")),
        ("flip:0.2", LabelKind("flip", 0.2)),
        ("flip:1e-3", LabelKind("flip", 0.001)),
    ],
)
def test_kinds(text, expected):
    assert parse_label_kind(text) == expected


BAD = ["", "Given", "given:", "given:0.1", "flip", "flip:", "flip:0", "flip:1", "flip:-0.1", "flip:nan", "flip:inf"]


@pytest.mark.parametrize("text", [*BAD, "flip:a", "monte-carlo:4", "none"])
def test_other_words_are_refused(text):
    with pytest.raises(PQMError) as found:
        parse_label_kind(text)
    assert str(found.value).startswith(f"labels {text}: choose given, first-error, monte-carlo or flip:P")


def trl(path, labels, ids=True):
    """Writes a record for each list of labels; None is a record without labels."""
    with open(path, "w", encoding="utf-8") as file:
        for i, own in enumerate(labels):
            row = {"prompt": f"Q{i}?", "completions": [f"s{t}" for t in range(len(own or "ab"))]}
            row |= {"id": f"r{i}"} if ids else {}
            file.write(json.dumps(row if own is None else row | {"labels": own}) + "\n")
    return str(path)


def written(data, kind, out, read=None):
    write_relabelled([data] if isinstance(data, str) else data, read or ReadOptions(), parse_label_kind(kind), out)
    return list(read_records(out))


def test_given_labels_stay_and_records_without_any_are_left_out(tmp_path):
    given = [[1, 0, None], None, [0.25, 1], [None, None]]
    found = written(trl(tmp_path / "a.jsonl", given), "given", tmp_path / "out" / "given.jsonl")
    assert [(r.id, r.prompt, r.steps, r.labels) for r in found] == [
        ("r0", "Q0?", ["s0", "s1", "s2"], [1, 0, None]),
        ("r2", "Q2?", ["s0", "s1"], [0.25, 1]),
    ]


def test_first_error_takes_the_labels_behind_it(tmp_path):
    given = [[1, 1, 1], [1, 0, 1, 0], [0, 0], [None, 1, 0.4, None, 1], [0.5, 0.49, 0.9], [1, None, 1]]
    found = written(trl(tmp_path / "a.jsonl", given), "first-error", tmp_path / "out.jsonl")
    assert [record.labels for record in found] == [
        [1, 1, 1],
        [1, 0, None, None],
        [0, None],
        [None, 1, 0.4, None, None],
        [0.5, 0.49, None],
        [1, None, 1],
    ]


def test_flips_are_as_many_as_asked_independent_and_the_same_each_time(tmp_path):
    count, rate = 2500, 0.2
    given = [[1, 0, None, 1, 0.25] for _ in range(count)]
    data = trl(tmp_path / "a.jsonl", given)
    found = written(data, "flip:0.2", tmp_path / "one.jsonl")
    written(data, "flip:0.2", tmp_path / "two.jsonl")
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert all(record.labels[2] is None for record in found)
    assert {record.labels[4] for record in found} == {0.25, 0.75}
    other = {0: 0, 1: 1, 3: 0, 4: 0.75}
    flipped = [[record.labels[t] == value for t, value in other.items()] for record in found]
    for t in range(4):  # each place by itself, and each pair of places, within four standard deviations
        share = sum(own[t] for own in flipped) / count
        assert abs(share - rate) < 4 * math.sqrt(rate * (1 - rate) / count)
        for u in range(t):
            both = sum(own[t] and own[u] for own in flipped) / count
            assert abs(both - rate**2) < 4 * math.sqrt(rate**2 * (1 - rate**2) / count)


def test_other_rates_are_other_draws(tmp_path):
    data = trl(tmp_path / "a.jsonl", [[1] * 20] * 50)
    low, high = (written(data, kind, tmp_path / f"{kind}.jsonl") for kind in ("flip:0.3", "flip:0.4"))
    # nested draws would make every flip at 0.3 one at 0.4
    assert any(
        a == 0 and b == 1 for x, y in zip(low, high, strict=True) for a, b in zip(x.labels, y.labels, strict=True)
    )


def test_flips_do_not_depend_on_what_else_is_in_the_file(tmp_path):
    given = [[1, 0, 1, 0, 1]] * 30
    every = written(trl(tmp_path / "a.jsonl", given), "flip:0.5", tmp_path / "every.jsonl")
    some = written(trl(tmp_path / "b.jsonl", [given[0], None, *given[2:20]]), "flip:0.5", tmp_path / "some.jsonl")
    assert [r.labels for r in some] == [every[0].labels, *(r.labels for r in every[2:20])]


def test_several_files_of_another_format(tmp_path):
    """Math-Shepherd records without ids become TRL records, each with its own id."""
    row = {"input": "2+3? Step 1: five ки\nStep 2: six ки", "label": "2+3? Step 1: five +\nStep 2: six -"}
    files = []
    for name in ("a", "b"):
        files.append(str(tmp_path / f"{name}.jsonl"))
        (tmp_path / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 2)
    found = written(files, "given", tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [sorted(own) for own in rows] == [["completions", "id", "labels", "prompt"]] * 4
    assert len({r.id for r in found}) == 4
    assert all((r.prompt, r.steps, r.labels) == ("2+3?", ["Step 1: five", "Step 2: six"], [1, 0]) for r in found)


def test_nothing_to_train_on(tmp_path):
    data = trl(tmp_path / "a.jsonl", [None, None])
    with pytest.raises(PQMError, match=r"a\.jsonl: no record has labels to train on"):
        written(data, "given", tmp_path / "out.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]  # nothing that the next call would take


def test_bad_records_stop_or_are_counted(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "Q?", "completions": ["s"], "labels": [1]}) + "\n{\n")
    data = str(tmp_path / "a.jsonl")
    with pytest.raises(PQMError, match="line 2"):
        written(data, "given", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    assert len(written(data, "given", tmp_path / "out.jsonl", ReadOptions(skip_bad=True))) == 1
    assert "skipped 1 bad record" in capsys.readouterr().out
