"""`python -m pqm_benchmarks score` at a tiny size on the CPU, and what it stores, counts, judges and draws."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from pqm_benchmarks.__main__ import main
from pqm_benchmarks.score import run as score
from pqm_benchmarks.score.report import table
from pqm_benchmarks.score.run import ScoreBench
from pqm_benchmarks.score.ways import way as scoring_way
from pqm_benchmarks.score.ways.ladder import WAYS
from pqm_benchmarks.shared import workload
from pqm_benchmarks.shared.prefix_tree import count_prefixes
from pqm_benchmarks.shared.shapes import ALL_SHAPES
from pqm_benchmarks.shared.workload import make_workload
from pqm_benchmarks.work.flops import scoring_flops
from pqm_benchmarks.work.model_flops import count_model_flops

from pqm_fast.errors import PQMError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def results(whole_run):
    return json.loads((whole_run("score") / "score.json").read_text())


# ---- the workload ---------------------------------------------------------------------------------------------------


def test_more_solutions_share_as_much_as_22_do(monkeypatch):
    """The chance to copy one more step is that of 22 solutions; the ratio that this gives is another."""
    shares, share = [], workload._share
    monkeypatch.setattr(workload, "_share", lambda *a: shares.append(share(*a)) or shares[-1])
    few, many = make_workload(4, 1), make_workload(4, 1, solutions=128)
    assert shares[0] == shares[1]
    assert [len(own) for own in many] == [128] * 4

    def ratio(groups):
        return sum(len(t.input_ids) for own in groups for t in own) / sum(count_prefixes(own)[0] for own in groups)

    assert ratio(few) == pytest.approx(1.6, abs=0.02)
    assert 1.5 < ratio(many) < 2.0
    assert ratio(make_workload(4, 1, 2.0, solutions=128)) > ratio(many) + 0.2
    for own in many:  # none is the beginning of another, and all steps can be told
        assert len({t.input_ids.tobytes() for t in own}) == 128
        assert all((t.input_ids[t.step_tokens] == 1).all() and (t.input_ids == 1).sum() == len(t.labels) for t in own)


@pytest.mark.parametrize(("solutions", "vocabulary"), [(0, 100), (98, 100)])
def test_solutions_that_cannot_be(solutions, vocabulary):
    with pytest.raises(PQMError, match=f"100 token ids are enough for 1 to 97 solutions .* found {solutions}"):
        make_workload(2, 0, solutions=solutions, vocabulary=vocabulary)


# ---- a run ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("short")
def test_a_run_stores_what_only_scoring_has(results):
    groups = make_workload(2, 0, solutions=6, vocabulary=512)
    tokens = sum(len(t.input_ids) for own in groups for t in own)
    unique = sum(count_prefixes(own)[0] for own in groups)
    for record in results["records"]:
        assert [len(laps) for laps in record["ahead_seconds"]] == [1, 1]
        assert record["ahead_solutions_per_s"] == pytest.approx(24 / sum(a[0] for a in record["ahead_seconds"]))
        assert record["flops_per_solution"] == pytest.approx(record["flops"] / 12)
        assert 0 < record["error"] < 1e-6
    by_way = {record["way"]: record for record in results["records"]}
    computed = {way: record["computed_tokens"] for way, record in by_way.items()}
    assert computed["packed"] == computed["packed_rows"] == tokens
    assert computed["tree"] == computed["tree_rows"] == unique
    assert min(computed["published"], computed["padded"]) > tokens
    assert by_way["published"]["setting"] == {"batch": 4}
    assert by_way["published"]["batches"] == 3
    products = count_model_flops(ALL_SHAPES["tiny"].config())
    for way, record in by_way.items():
        rows = WAYS[way].rows(list(WAYS[way].batches(groups, record["setting"])))
        assert record["flops"] == sum(scoring_flops(rows, products).values())


def test_the_table_says_which_solutions_the_tree_ratio_is_of(results):
    assert "that of 22 solutions was set to 1.6" in table(results)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--solutions", "0"], "solutions: must be positive, found 0"),
        (["--solutions", "600"], "512 token ids are enough for 1 to 509 solutions"),
        (["--count", "--solutions", "0"], "enough for 1 to 31997 solutions to a question, found 0"),
    ],
)
def test_bad_sizes_are_told(bench, tmp_path, capsys, options, message):
    assert bench("score", tmp_path, *options) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_filling_up_is_told(bench, tmp_path):
    assert bench("score", tmp_path, "--ways", "packed", "compiled", "--rounds", "1") == 0
    packed, compiled = json.loads((tmp_path / "score.json").read_text())["records"]
    assert packed["notes"] == {}
    assert compiled["setting"] == {"max_tokens": 32768}
    assert compiled["notes"] == {"filled": compiled["computed_tokens"] / 32768}
    assert compiled["flops"] < packed["flops"]


@pytest.mark.usefixtures("short")
def test_sizes_where_none_are_given():
    assert score._sizes(ScoreBench(), 6, 128) == (6, 128)
    assert score._sizes(ScoreBench(questions=3, solutions=0), 6, 128) == (3, 0)
    config = ScoreBench(device="cpu", seconds=0, rounds=1, ways=("packed",))
    stored = score.measure(config, lambda _: None)
    assert (stored["config"]["questions"], stored["config"]["solutions"]) == (2, 8)
    assert stored["workload"]["trajectories"] == 16


@pytest.mark.usefixtures("short")
def test_wrong_scores_are_not_timed(bench, monkeypatch, tmp_path):
    way = WAYS["tree"]

    def wrong(*arguments):
        scoring = way.build(*arguments)
        scoring.model.head.bias.data += 0.01
        return scoring

    timed = []
    monkeypatch.setitem(WAYS, "tree", replace(way, build=wrong))
    monkeypatch.setattr(scoring_way, "score", lambda *a, own=scoring_way.score: timed.append(a[0].title) or own(*a))
    assert bench("score", tmp_path, "--ways", "packed", "tree") == 0
    stored = json.loads((tmp_path / "score.json").read_text())
    assert [r["way"] for r in stored["records"]] == ["packed"]
    assert "its scores have an error of" in stored["failed"][0]["why"]
    # twice to try the setting, once to warm up and check; packed has its lap as well, and another round of two
    assert (timed.count("tree"), timed.count("packed")) == (3, 6)


# ---- what is counted ------------------------------------------------------------------------------------------------


def test_counting_leaves_nothing_behind(bench, tmp_path, capsys):
    assert bench("score", tmp_path, "--count", "--shapes", "tiny", "--ways", "packed", "tree") == 0
    assert "Counted, not measured" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


# ---- targets and pictures, of made-up results ------------------------------------------------------------------------


BOTH = ("Qwen2.5-0.5B", "Qwen2.5-7B")


def made_results(results, device="NVIDIA H200", rates=(10, 18, 21, 22, 33, 34, 37), shapes=BOTH):
    """As of a GPU: `rates` in solutions/s of every way, for each model."""
    made = copy.deepcopy(results)
    template = made["records"][0]
    made["environment"]["device"] = device
    made |= {"device": "cuda", "dtype": "bfloat16", "matrix_tflops": 800.0, "matrix_tflops_rounds": [800.0]}
    made["records"] = []
    made["peak"] = {"name": "H200", "tflops": 989.0}
    for shape in shapes:
        for (name, way), rate in zip(WAYS.items(), rates, strict=True):
            own = {"shape": shape, "way": name, "title": way.title, "source": way.source, "excess": 1.0}
            speed = {"solutions_per_s": rate, "ahead_solutions_per_s": 1.1 * rate, "peak_bytes": 2**36}
            mfu = {"mfu": rate / 100, "tflops": 9.89 * rate, "of_matrix_rate": 9.89 * rate / 800}
            flops = {"flops": 4_000 if name == "published" else 2_000}
            made["records"].append(template | own | speed | mfu | flops)
    return made


def target_of(text):
    [line] = [line for line in text.splitlines() if line.startswith("Qwen2.5-7B: solutions/s")]
    return line


def test_the_target_is_judged_on_the_device_that_it_is_for(results):
    text = table(made_results(results))
    assert "3.40x" in target_of(text)
    assert target_of(text).endswith("  NOT MET")
    assert "2.00x of it is fewer operations, 1.70x more of them a second" in text
    met = table(made_results(results, rates=(10, 18, 21, 22, 33, 80, 37)))
    assert "8.00x" in target_of(met)
    assert target_of(met).endswith("  met")
    assert target_of(table(made_results(results, device="NVIDIA A100"))).endswith("  not judged")
    assert "target" not in table(made_results(results, shapes=("Qwen2.5-0.5B",)))


def test_padding_of_few_solutions_is_told(results):
    made = made_results(results, shapes=("Qwen2.5-7B",))
    made["records"][1]["excess"] = 1.5
    [line] = [line for line in table(made).splitlines() if line.startswith("transformers, by length, Qwen2.5-7B")]
    assert "padded 1.50 times as much" in line
    assert line.endswith("it would reach 27 solutions/s")


@pytest.mark.slow
def test_the_readme_shows_what_is_counted(capsys):
    assert main(["score", "--count", "--questions", "50"]) == 0
    assert f"```\n{capsys.readouterr().out}```" in (ROOT / "benchmarks" / "README.md").read_text()
