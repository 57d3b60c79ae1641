"""`pqm-fast probe-study` from the records to the tables, and its figures against definitions in plain Python."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_probes import saved_model
from study_data import study_in, write_rows

from pqm_fast.common.journal import Journal
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.read import read_records
from pqm_fast.data.records import first_wrong
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.aggregate import aggregate
from pqm_fast.evaluate.prm_score import prm_score
from pqm_fast.evaluate.processbench import cross_calibrated, processbench
from pqm_fast.evaluate.step_metrics import step_metrics
from pqm_fast.evaluate.step_thresholds import thresholds_from
from pqm_fast.probe_study.document import document, tables
from pqm_fast.probe_study.jackknife import numbered, pseudo_values
from pqm_fast.probe_study.pool_test import PoolTest
from pqm_fast.probe_study.run import probe_study
from pqm_fast.probe_study.shared_data import group_of, prepare, split_file, training_file
from pqm_fast.probe_study.step_test import STEP_FIGURES, first_error_values, step_values


def without_changing(results):
    return {name: value for name, value in results.items() if name not in ("commit", "config")}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    config = study_in(folder)
    return config, probe_study(config)


def test_a_study_from_records_to_tables(done):
    config, results = done
    assert {path.name for path in config.folder.iterdir()} >= {"results.json", "study.md", "losses.png", "layers.png"}
    assert json.loads((config.folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (config.folder / "study.md").read_text() == document(results)
    assert [(cell["loss"], cell["labels"]) for cell in results["cells"]] == [
        (loss, labels) for labels in config.labels for loss in config.losses
    ]
    for cell in results["cells"]:
        assert set(cell["figures"]["steps"]) == set(STEP_FIGURES)
        assert cell["layer"] in (1, 3)
        assert (cell["zeta"] in config.zetas) if cell["loss"] == "rank" else cell["zeta"] is None
        assert (cell["against"] is None) == (cell["loss"] == "bce")
        assert set(cell["layers"]) == ({"1", "3"} if cell["labels"] == "given" else set())
        assert set(cell["errors"]["by_type"]) == {"slip", "jump", "none"}
    # the chosen layer is the best one on the tuning questions, and is kept for the other kinds of labels
    for loss in config.losses:
        given, flipped = (cell for cell in results["cells"] if cell["loss"] == loss)
        assert given["layers"][str(given["layer"])] == max(given["layers"].values())
        assert flipped["layer"] == given["layer"]
    names = [control["name"].partition(" ")[0] for control in results["controls"]]
    assert names == ["position", "length", "majority"]
    majority = results["controls"][2]["figures"]
    assert majority["steps"]["auroc"]["mean"] == 0.5
    assert majority["first_errors"]["f1"]["mean"] == 0
    assert set(tables(results)) == {
        "steps-given", "steps-flip:0.2", "first-errors-given", "first-errors-flip:0.2", "pool", "chosen", "layers",
        "types", "positions",
    }  # fmt: skip


def test_a_difference_is_that_of_the_means(done):
    _, results = done
    bce, rank = (cell for cell in results["cells"] if cell["labels"] == "given" and cell["loss"] in ("bce", "rank"))
    for test, figures in rank["against"].items():
        for name, difference in figures.items():
            means = [cell["figures"][test][name]["mean"] for cell in (rank, bce)]
            assert difference["mean"] == pytest.approx(means[0] - means[1], abs=1e-12)


def test_a_finished_study_trains_nothing_again_and_an_interrupted_one_continues(done, tmp_path, monkeypatch):
    config, results = done
    monkeypatch.setattr(Journal, "append", lambda *_: pytest.fail("trained again"))
    assert without_changing(probe_study(config)) == without_changing(results)
    monkeypatch.undo()
    real, calls = Journal.append, []

    def append(journal, row):
        calls.append(row)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(journal, row)

    other = study_in(tmp_path, model=config.model, cache_dir=config.cache_dir)
    monkeypatch.setattr(Journal, "append", append)
    with pytest.raises(KeyboardInterrupt):
        probe_study(other)
    monkeypatch.setattr(Journal, "append", lambda *a: calls.append(1) or real(*a))
    calls.clear()
    assert without_changing(probe_study(other)) == without_changing(results)
    whole = len((config.folder / "trials.jsonl.part").read_text().splitlines()) - 1
    assert len(calls) == whole - 4
    # other losses can be added; other options of training cannot
    added = probe_study(study_in(tmp_path, model=config.model, cache_dir=config.cache_dir, losses=("bce", "mse")))
    assert [cell["loss"] for cell in added["cells"]][:2] == ["bce", "mse"]
    with pytest.raises(PQMError, match="was started with other options: patience"):
        probe_study(study_in(tmp_path, model=config.model, cache_dir=config.cache_dir, patience=1))


def test_the_split_keeps_groups_together_and_the_labels_of_training_alone_change(tmp_path):
    config = study_in(tmp_path, labels=("given", "flip:0.2", "first-error"), group_by="id")
    rows = [json.loads(line) for line in Path(config.data[0]).read_text().splitlines()]
    write_rows(Path(config.data[0]), [row | {"id": f"p{i // 4}/{i % 4}"} for i, row in enumerate(rows)])
    assert prepare(config) == []
    sides = {side: list(read_records(split_file(config, side))) for side in ("training", "tuning", "test")}
    groups = {side: {group_of(record, "id") for record in records} for side, records in sides.items()}
    assert sum(map(len, groups.values())) == 30
    assert (len(groups["test"]), len(groups["tuning"])) == (8, 4)
    assert sum(map(len, sides.values())) == len(rows)
    [note] = prepare(replace(config, group_by="question"))
    assert "ids up to their last slash are on two sides" in note
    prepare(config)
    assert {record.extra["error_type"] for record in sides["test"]} == {"slip", "jump", None}
    given, flipped, until = ([r.labels for r in read_records(training_file(config, kind))] for kind in config.labels)
    assert given == [r.labels for r in sides["training"]]
    changed = [a != b for own, other in zip(given, flipped, strict=True) for a, b in zip(own, other, strict=True)]
    assert 0.1 < np.mean(changed) < 0.3
    for own, other in zip(given, until, strict=True):
        first = own.index(0.0) if 0.0 in own else -1
        assert other == (own if first < 0 else own[: first + 1] + [None] * (len(own) - first - 1))


def made_up(count=60, seed=0):
    """Records with labels, groups of three, and scores that say something about the labels."""
    rng = np.random.default_rng(seed)
    rows = [[bool(b) for b in rng.integers(0, 3, int(rng.integers(1, 7)))] for _ in range(count)]
    return rows, [[float(rng.normal(y)) for y in row] for row in rows]


def records_of(tmp_path, labels, name="made.jsonl"):
    rows = [
        {"id": f"r{i}", "prompt": f"q{i // 3}", "completions": ["s"] * len(own), "labels": own}
        for i, own in enumerate(labels)
    ]
    return list(read_records(write_rows(tmp_path / name, rows)))


def test_pseudo_values_of_step_figures(tmp_path):
    labels, scores = made_up()
    tuning_labels, tuning_scores = made_up(seed=1)
    records = records_of(tmp_path, labels)
    thresholds = thresholds_from(tuning_scores, tuning_labels, len(records))
    values = step_values(records, [record.prompt for record in records], scores, thresholds)

    def figure(name, members):
        q, y = [scores[i] for i in members], [labels[i] for i in members]
        threshold = 0.0 if name in ("auroc", "pair_accuracy") else thresholds.chosen[name][0]
        if name == "prm_score":
            return prm_score(q, y, threshold)["prm_score"]
        return step_metrics(q, y, threshold)[name]

    everyone = range(len(records))
    for name in STEP_FIGURES:
        whole = figure(name, everyone)
        expected = [20 * whole - 19 * figure(name, [i for i in everyone if i // 3 != g]) for g in range(20)]
        assert values[name] == pytest.approx(whole + np.array(expected) - np.mean(expected), abs=1e-9), name
        assert values[name].mean() == pytest.approx(whole)


def test_pseudo_values_of_a_mean_are_the_values_and_an_undefined_figure_has_none():
    x = np.array([1.0, 4.0, 2.0, 8.0])
    assert pseudo_values(np.arange(4), lambda mask: float(x[mask].mean())) == pytest.approx(x)
    assert pseudo_values(np.arange(4), lambda mask: None if mask.sum() == 3 else 1.0) is None
    assert numbered(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


def test_first_errors_are_those_of_processbench(tmp_path):
    labels, scores = made_up()
    firsts = [own.index(0.0) if 0.0 in own else -1 for own in labels]
    until = [
        own if f < 0 else own[: f + 1] + [None] * (len(own) - f - 1) for own, f in zip(labels, firsts, strict=True)
    ]
    records = records_of(tmp_path, until)
    assert [first_wrong(record.labels) for record in records] == firsts
    values = first_error_values(records, scores, 0.3)
    crossed = cross_calibrated(scores, firsts, [f"q{i // 3}" for i in range(60)])
    assert values.pop("f1_cross").mean() == pytest.approx(crossed["f1"])
    for name, own in values.items():
        expected = []
        whole = processbench(scores, firsts, 0.3)[name]
        for g in range(20):
            keep = [i for i in range(60) if i // 3 != g]
            without = processbench([scores[i] for i in keep], [firsts[i] for i in keep], 0.3)[name]
            expected.append(20 * whole - 19 * without)
        assert own == pytest.approx(whole + np.array(expected) - np.mean(expected), abs=1e-9)


def test_pools_take_the_best_candidate_of_each_question(tmp_path):
    study_in(tmp_path)
    records = list(read_records(tmp_path / "pool.jsonl"))
    pool = PoolTest.of(records, "pool", seed=0)
    assert (len(pool.tuning), len(pool.test), pool.candidates) == (5, 20, 4)
    scores = [[float(math.sin(7 * i + t)) for t in range(len(r.steps))] for i, r in enumerate(records)]
    got = pool.values(scores, "min")
    for members, value in zip(pool.test, got, strict=True):
        best = max(members, key=lambda i: aggregate(scores[i], "min"))
        assert value == records[best].extra["correct"]
    chosen = pool.aggregator(scores)
    tuned = {
        how: np.mean([records[max(m, key=lambda i: aggregate(scores[i], how))].extra["correct"] for m in pool.tuning])
        for how in ("min", "last", "mean", "softmin", "prod", "max")
    }
    assert tuned[chosen] == max(tuned.values())
    yardsticks = pool.yardsticks()
    correct = [[float(records[i].extra["correct"]) for i in members] for members in pool.test]
    assert yardsticks["one candidate"] == pytest.approx([np.mean(own) for own in correct])
    assert yardsticks["oracle"].tolist() == [max(own) for own in correct]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "mse"}, "baseline: mse is not among the losses"),
        ({"labels": ("monte-carlo",)}, "labels monte-carlo"),
        ({"test_fraction": 1.0}, "test_fraction: 1.0 was given"),
        ({"seeds": ()}, "seeds: none was given"),
    ],
)
def test_bad_options(tmp_path, changes, message):
    with pytest.raises(PQMError, match=message):
        study_in(tmp_path, **changes)


def test_labels_are_read_once(tmp_path):
    """The options that read the user's records do not apply to the records that the study has written."""
    config = study_in(tmp_path, read=ReadOptions(label_map="-1=0,0=null,1=1"), pools=(), processbench=())
    rows = [json.loads(line) for line in Path(config.data[0]).read_text().splitlines()]
    write_rows(Path(config.data[0]), [r | {"labels": [1 if y else -1 for y in r["labels"]]} for r in rows])
    prepare(config)
    labels = [y for r in read_records(training_file(config, "given")) for y in r.labels]
    assert None not in labels
    assert 0.0 in labels
    results = probe_study(config)
    assert results["cells"][0]["figures"]["steps"]["auroc"] is not None


def test_another_model_of_the_same_name_is_refused(tmp_path):
    config = study_in(tmp_path)
    probe_study(config)
    saved_model(tmp_path / "model", hidden_size=16, intermediate_size=24)
    with pytest.raises(PQMError, match="was started with other options: model"):
        probe_study(config)


def test_bad_data(tmp_path):
    config = study_in(tmp_path)
    write_rows(Path(config.data[0]), [json.loads(Path(config.data[0]).read_text().splitlines()[0])])
    with pytest.raises(PQMError, match="no record is left for the tuning side"):
        probe_study(config)
    (tmp_path / "b").mkdir()
    config = study_in(tmp_path / "b")
    rows = [json.loads(line) for line in (tmp_path / "b" / "pool.jsonl").read_text().splitlines()]
    for row in rows:
        del row["correct"]
    write_rows(tmp_path / "b" / "pool.jsonl", rows)
    with pytest.raises(PQMError, match="is no candidate that can be judged"):
        probe_study(config)
