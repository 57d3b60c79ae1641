from pathlib import Path

import pytest
from report_files import pool, solution, write_lines, write_results, write_run

from pqm_fast.errors import PQMError
from pqm_fast.report.runs import find_runs


def test_a_training_run_with_what_was_evaluated_and_scored_in_its_folder(tmp_path):
    folder = write_run(tmp_path / "run", loss="bce")
    write_results(folder / "test.json", pool(1.0))
    write_lines(folder / "test.jsonl", pool(1.0))
    (folder / "config.json").write_text('{"architectures": []}')
    write_lines(folder / "unscored.jsonl", [{"prompt": "a", "completions": ["b"]}])
    [run] = find_runs([str(folder)])
    assert (run.path, run.name) == (folder, "run")
    assert run.options["loss"] == "bce"
    assert run.options["template.step_token"] == "<|step|>"
    assert [row["step"] for row in run.metrics if row["kind"] == "eval"] == [20, 40]
    assert list(run.evaluations) == ["test"]
    assert run.scored == [folder / "test.jsonl"]


def test_results_of_one_name_are_one_run(tmp_path):
    for name, good in (("a", 0.0), ("b", 1.0)):
        write_results(tmp_path / f"{name}.json", pool(good))
    write_lines(tmp_path / "b.jsonl", pool(1.0))
    for paths in ([tmp_path], [tmp_path / "a.json", tmp_path / "b.jsonl", tmp_path / "b.json"]):
        a, b = find_runs([str(path) for path in paths])
        assert (a.name, b.name) == ("a", "b")
        assert (list(a.evaluations), a.scored) == (["a"], [])
        assert (list(b.evaluations), b.scored) == (["b"], [tmp_path / "b.jsonl"])


def test_files_of_one_model_are_one_run_wherever_they_lie(tmp_path):
    """Two models, each with three results and a scored file in folders by data, given one by one."""
    trained = write_run(tmp_path / "runs" / "a")
    files = []
    for model, good in ((str(trained), 0.0), ("org/b", 1.0)):
        name = Path(model).name
        for data in ("steps", "pools", "bench"):
            files.append(write_results(tmp_path / "results" / data / f"{name}.json", pool(good), model))
        rows = [row | {"scored_by": model} for row in pool(good)]
        files.append(write_lines(tmp_path / "results" / f"{name}-scored.jsonl", rows))
    a, b = find_runs([str(path) for path in files])
    assert [(run.name, run.metrics, len(run.scored)) for run in (a, b)] == [("a", [], 1), ("b", [], 1)]
    assert list(a.evaluations) == ["steps/a", "pools/a", "bench/a"]  # none takes another's place
    a, b = find_runs([*map(str, files), str(trained), str(files[0])])
    assert (a.path, bool(a.metrics), a.options["loss"], len(a.evaluations)) == (trained, True, "rank", 3)
    assert (b.name, len(b.evaluations), b.scored) == ("b", 3, [files[-1]])


def test_a_file_in_the_folder_of_a_run_is_of_another_model_if_that_is_a_run(tmp_path):
    a, b = (write_run(tmp_path / name) for name in ("a", "b"))
    write_results(a / "other.json", pool(1.0), str(b))
    write_results(a / "own.json", pool(1.0), "/where/it/was/trained/a")  # the folder was moved
    found = {run.name: list(run.evaluations) for run in find_runs([str(a), str(b)])}
    assert found == {"a": ["own"], "b": ["other"]}
    [alone] = find_runs([str(a / "own.json")])
    assert alone.path == a


def test_a_name_joins_files_that_do_not_say_their_model(tmp_path):
    """As those of before `evaluate` wrote it down: without a name each is a run, for nothing tells that they belong
    together, and lr1.5 and lr1.7 must not."""
    paths = [write_results(tmp_path / f"lr1.{k}.json", pool(k / 10)) for k in (5, 7)]
    assert [run.name for run in find_runs([str(path) for path in paths])] == ["lr1.5", "lr1.7"]
    other = write_results(tmp_path / "x" / "a=b.json", pool(1.0))
    joined, apart = find_runs([*(f"mine={path}" for path in paths), str(other)])
    assert (joined.name, list(joined.evaluations)) == ("mine", ["lr1.5", "lr1.7"])
    assert (apart.name, list(apart.evaluations)) == ("a=b", ["a=b"])
    folder = write_run(tmp_path / "run")
    [named] = find_runs([f"best={folder}", str(write_results(tmp_path / "r.json", pool(1.0), str(folder)))])
    assert (named.name, bool(named.metrics), list(named.evaluations)) == ("best", True, ["r"])
    [named] = find_runs([str(folder), f"run={write_results(tmp_path / 'r.json', pool(1.0))}"])
    assert (named.name, bool(named.metrics), list(named.evaluations)) == ("run", True, ["r"])


def test_a_folder_of_runs_and_results_beside_them(tmp_path):
    write_run(tmp_path / "two")
    write_run(tmp_path / "one")
    write_results(tmp_path / "one.json", pool(1.0))
    (tmp_path / "empty").mkdir()
    runs = find_runs([str(tmp_path)])
    assert sorted(run.name for run in runs) == ["one", "two"]
    assert {run.name: list(run.evaluations) for run in runs} == {"one": ["one"], "two": []}
    assert all(run.metrics for run in runs)


def test_names_are_as_long_as_they_must_be_and_a_run_stands_once(tmp_path):
    a, b, c = (write_run(tmp_path / name) for name in ("x/rank", "y/rank", "y/bce"))
    runs = find_runs([str(path) for path in (a, b, c, a)])
    assert [run.name for run in runs] == ["x/rank", "y/rank", "bce"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", "no such file or folder"),
        (lambda folder: folder, "nothing to report"),
        (lambda folder: write_run(folder / "run") / "metrics.jsonl", "name the run's folder instead"),
    ],
)
def test_nothing_to_report(tmp_path, make, message):
    path = make(tmp_path)
    with pytest.raises(PQMError, match=message) as error:
        find_runs([str(path)])
    assert str(error.value).startswith(f"{path}: ")


def test_no_path():
    with pytest.raises(PQMError, match="name at least one"):
        find_runs([])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", b"a: [", "cannot be read as YAML"),
        ("config.yaml", b"- 1", "damaged, it holds no options"),
        ("config.yaml", b"\xff", "cannot be read as YAML"),
        ("metrics.jsonl", b'{"epoch": 1}\n', "not the metrics of `pqm-fast train`"),
        ("metrics.jsonl", b"\xff", "no line with `kind` and `step` is intact"),
        ("result.json", b"{", "damaged, not JSON"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, message):
    folder = write_run(tmp_path / "run")
    (folder / name).write_bytes(content)
    with pytest.raises(PQMError, match=message) as error:
        find_runs([str(folder)])
    assert str(folder / name) in str(error.value)


def test_json_of_others_is_passed_over(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    (folder / "other.json").write_text('{"records": 3, "steps": 5}')
    (folder / "list.json").write_text("[1]")
    write_lines(folder / "scored.jsonl", [solution("a", [1.0])])
    (folder / "notes.jsonl").write_text("no JSON\n")
    [run] = find_runs([str(folder)])
    assert (run.evaluations, run.scored) == ({}, [folder / "scored.jsonl"])
