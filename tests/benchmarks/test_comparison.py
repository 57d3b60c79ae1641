"""What the benchmarks score and train have in common: options, rounds, stored results and printed tables."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pqm_benchmarks.comparison.rounds import SettingSearch, over_median, take_turns
from pqm_benchmarks.score import report as score_report
from pqm_benchmarks.score import run as score
from pqm_benchmarks.score.ways import ladder as score_ladder
from pqm_benchmarks.shared.attempts import fastest
from pqm_benchmarks.shared.prefix_tree import count_prefixes
from pqm_benchmarks.shared.workload import make_workload
from pqm_benchmarks.train import report as train_report
from pqm_benchmarks.train import run as train
from pqm_benchmarks.train.ways import ladder as train_ladder

from pqm_fast.errors import PQMError

pytestmark = pytest.mark.usefixtures("short")


@dataclass(frozen=True)
class Bench:
    """One of the benchmarks."""

    name: str
    module: ModuleType
    options: Callable[..., Any]
    small: dict[str, Any]
    """Options of a run that is smaller than that of `whole_run`."""
    ways: dict[str, Any]
    table: Callable[..., str]
    picture: str
    solutions: int
    """To a question, in `whole_run`."""
    unit: str


BENCHES = [
    Bench(
        "score", score, score.ScoreBench, {"questions": 1, "solutions": 3, "tree_ratio": 1.5},
        score_ladder.WAYS, score_report.table, "scoring.png", 6, "solutions",
    ),
    Bench(
        "train", train, train.TrainBench, {"questions": 1, "steps": 1},
        train_ladder.WAYS, train_report.table, "train_steps.png", 22, "trajectories",
    ),
]  # fmt: skip


@pytest.fixture(params=BENCHES, ids=lambda own: own.name)
def one(request):
    return request.param


@pytest.fixture
def folder(one, whole_run):
    return whole_run(one.name)


@pytest.fixture
def results(one, folder):
    return json.loads((folder / f"{one.name}.json").read_text())


# ---- a run ----------------------------------------------------------------------------------------------------------


def test_a_run_stores_the_figures_of_every_way(one, folder, results):
    eager = [name for name in one.ways if name not in ("compiled", "all")]
    assert [(r["shape"], r["way"]) for r in results["records"]] == [("tiny", way) for way in eager]
    assert (results["failed"], results["device"], results["dtype"], results["peak"]) == ([], "cpu", "float32", None)
    groups = make_workload(2, 0, solutions=one.solutions, vocabulary=512)
    solutions, tokens = 2 * one.solutions, sum(len(t.input_ids) for own in groups for t in own)
    unique = sum(count_prefixes(own)[0] for own in groups)
    assert results["workload"] == {
        "questions": 2, "trajectories": solutions, "tokens": tokens, "tree_ratio": pytest.approx(tokens / unique),
    }  # fmt: skip
    for record in results["records"]:
        way = one.ways[record["way"]]
        assert (record["title"], record["source"]) == (way.title, way.source)
        assert [len(laps) for laps in record["lap_seconds"]] == [1, 1]
        seconds = sum(laps[0] for laps in record["lap_seconds"]) / 2
        assert record[f"{one.unit}_per_s"] == pytest.approx(solutions / seconds)
        assert record["real_tokens_per_s"] == pytest.approx(tokens / seconds)
        assert record["computed_tokens_per_s"] == pytest.approx(record["computed_tokens"] / seconds)
        assert record["tflops"] == pytest.approx(record["flops"] / seconds / 1e12)
        assert record["of_matrix_rate"] == pytest.approx(record["tflops"] / results["matrix_tflops"])
        assert (record["mfu"], record["peak_bytes"]) == (None, None)
        assert [t["setting"] for t in record["tried"]] == [record["setting"]]
    assert (folder / one.picture).read_bytes()[:4] == b"\x89PNG"


def test_the_table_says_that_these_are_no_gpu_figures(one, results):
    text = one.table(results)
    assert "NOT figures of a GPU" in text
    assert f"2 questions, {one.solutions} solutions each" in text
    assert "targets, set for" not in text  # none is for the tiny size
    for record in results["records"]:
        assert record["title"] in text


def test_a_stored_run_is_printed_again(one, folder, results, bench, tmp_path, capsys):
    assert bench(one.name, tmp_path, "--results", str(folder / f"{one.name}.json")) == 0
    assert one.table(results) in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == [one.picture]


def test_a_run_is_not_overwritten(one, folder, bench, capsys):
    assert bench(one.name, folder) == 1
    assert f"{one.name}.json: exists already" in capsys.readouterr().err


def test_results_are_stored_after_each_way(one):
    seen = []
    config = one.options(device="cpu", seconds=0, rounds=1, ways=("packed", "tree"), **one.small)
    one.module.measure(config, lambda so_far: seen.append(copy.deepcopy(so_far)))
    assert [[r["way"] for r in s["records"]] for s in seen] == [["packed"], ["packed", "tree"], ["packed", "tree"]]


def test_a_way_that_fails_is_told_and_the_others_go_on(one, bench, monkeypatch, tmp_path, capsys):
    def broken(*_):
        raise ImportError("no such kernel")

    [last] = {"tree_rows", "step_rows"} & one.ways.keys()
    monkeypatch.setitem(one.ways, "tree", replace(one.ways["tree"], build=broken))
    assert bench(one.name, tmp_path, "--ways", "packed", "tree", last) == 0
    stored = json.loads((tmp_path / f"{one.name}.json").read_text())
    assert [r["way"] for r in stored["records"]] == ["packed", last]
    assert stored["failed"] == [{"shape": "tiny", "way": "tree", "why": "ImportError: no such kernel"}]
    assert "left out: tree, tiny (ImportError: no such kernel)" in capsys.readouterr().out


# ---- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--questions", "0"], "questions: must be positive, found 0"),
        (["--rounds", "-1"], "rounds: must be positive, found -1"),
        (["--tries", "0"], "tries: must be positive, found 0"),
        (["--results", "nowhere.json"], "nowhere.json: is not a {name}.json of `python -m pqm_benchmarks {name}`"),
        (["--tree-ratio", "50"], "tree ratio"),
    ],
)
def test_bad_options_are_told(one, bench, tmp_path, capsys, options, message):
    assert bench(one.name, tmp_path, *options) == 1
    assert message.format(name=one.name) in capsys.readouterr().err


def test_unknown_names_are_told(one):
    """From Python, where no parser has looked at them."""
    first = next(iter(one.ways))
    for names, message in (
        ({"ways": ("fastest",)}, rf"ways: expected some of {first}, .* found fastest"),
        ({"shapes": ("huge",)}, r"shapes: expected some of .* found huge"),
        ({"device": "abacus"}, r"device: expected cpu, .* found 'abacus'"),
    ):
        with pytest.raises(PQMError, match=message):
            one.module.measure(one.options(**{"device": "cpu"} | names), lambda _: None)


# ---- rounds ---------------------------------------------------------------------------------------------------------


def turns(seconds, measure, ways="ab", rounds=2, wrong=None):
    """Calls of `measure` by way and setting, and what each `add` got. `seconds` of the settings of every way, numbered
    from 0; None for one that does not run."""
    calls, added = [], []

    def search(name):
        tried = [
            {"setting": {"size": i}, "seconds": s, "why": None if s else f"{name}{i // 2} broke"}
            for i, s in enumerate(seconds[name])
        ]
        return SettingSearch(fastest(tried), tried, (wrong or {}).get(name))

    def one_round(name, setting):
        calls.append(f"{name}{setting['size']}")
        return measure(calls)

    def record(name, setting, rounds):
        return {"laps_per_s": float(len(rounds)), "rounds": list(rounds)}

    def add(records, failed):
        added.append(copy.deepcopy((records, failed)))

    made = {name: SimpleNamespace(title=name.upper(), source=f"of {name}") for name in ways}
    take_turns(made, rounds, "laps", search, one_round, record, add)
    return calls, added


def test_ways_take_turns_in_their_fastest_setting(capsys):
    calls, added = turns({"a": [3.0, 1.0, 2.0], "b": [1.0]}, len)
    assert calls == ["a1", "b0", "a1", "b0"]
    assert [[r["way"] for r in records] for records, _ in added] == [["a"], ["a", "b"], ["a", "b"], ["a", "b"]]
    assert [r["rounds"] for r in added[-1][0]] == [[1, 3], [2, 4]]
    first = added[-1][0][0]
    assert (first["title"], first["source"], first["setting"]) == ("A", "of a", {"size": 1})
    assert [t["seconds"] for t in first["tried"]] == [3.0, 1.0, 2.0]
    assert capsys.readouterr().out.splitlines() == [
        "A, {'size': 0}: 3.000 s", "A, {'size': 1}: 1.000 s", "A, {'size': 2}: 2.000 s", "A: 1.0 laps/s",
        "B, {'size': 0}: 1.000 s", "B: 1.0 laps/s", "A: 2.0 laps/s", "B: 2.0 laps/s",
    ]  # fmt: skip


def test_the_next_best_setting_is_measured_where_the_fastest_fails():
    def measure(calls):
        if calls[-1] == "a1":
            raise MemoryError("out of memory")
        return 0  # what a round is may be anything

    calls, added = turns({"a": [3.0, 1.0, 2.0], "b": [1.0]}, measure)
    assert calls == ["a1", "a2", "b0", "a2", "b0"]
    assert added[-1][0][0]["setting"] == {"size": 2}
    assert [failed for _, failed in added] == [[]] * 4


def test_a_way_without_a_setting_is_told_and_not_measured():
    calls, added = turns({"a": [None, None, None], "b": [None, 1.0]}, len)
    assert calls == ["b1", "b1"]
    assert [failed for _, failed in added] == [[{"way": "a", "why": "a0 broke; a1 broke"}]] * 4  # each reason once


def test_a_way_that_is_wrong_is_told_and_not_measured():
    calls, added = turns({"a": [1.0], "b": [1.0]}, len, wrong={"b": "another loss"})
    assert calls == ["a0", "a0"]
    assert [failed for _, failed in added] == [[], *[[{"way": "b", "why": "another loss"}]] * 3]


def test_a_way_that_fails_in_a_later_round_keeps_what_it_had():
    def measure(calls):
        if len(calls) == 3:
            raise ValueError("lost")
        return len(calls)

    calls, added = turns({"a": [1.0, 2.0], "b": [1.0]}, measure, rounds=3)
    assert calls == ["a0", "b0", "a0", "b0", "b0"]  # no other setting: its rounds would not go together
    assert [r["rounds"] for r in added[-1][0]] == [[1], [2, 4, 5]]
    assert added[-1][1] == [{"way": "a", "why": "ValueError: lost"}]


def test_rates_are_over_the_median_pass_of_all_rounds():
    questions = [[SimpleNamespace(input_ids=[0] * n) for n in own] for own in ([3, 4], [5])]
    rounds = [SimpleNamespace(seconds=s, peak_bytes=b) for s, b in (([1.0, 9.0], 7), ([2.0], 5))]
    assert over_median("laps", questions, rounds, computed_tokens=10, flops=6 * 10**12) == {
        "lap_seconds": [[1.0, 9.0], [2.0]], "peak_bytes": 7, "laps_per_s": 1.5, "real_tokens_per_s": 6.0,
        "computed_tokens_per_s": 5.0, "tflops": 3.0,
    }  # fmt: skip
    rounds[0].peak_bytes = rounds[1].peak_bytes = None  # a CPU has no such figure
    assert over_median("laps", questions, rounds, 10, 1)["peak_bytes"] is None
