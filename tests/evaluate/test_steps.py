"""Everything that step labels allow, from records to figures."""

import json
from functools import reduce
from operator import getitem

import numpy as np
import pytest

from pqm_fast.data import read_records
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError
from pqm_fast.evaluate import calibrate_threshold, evaluate_steps, platt_scaling, table


def test_steps_with_processbench_figures():
    pairs = [
        (Record("a", "Q?", ["s"] * 3, [1.0, 0.0, None]), [1.0, -1.0, -1.0]),
        (Record("b", "Q?", ["s"] * 2, [1.0, 1.0]), [1.0, 1.0]),
        (Record("c", "Q?", ["s"] * 2, [0.0, 0.0]), [1.0, -1.0]),
        (Record("d", "Q?", ["s"]), [1.0]),
    ]
    found = evaluate_steps(pairs)
    assert found["steps"]["steps"] == 6
    assert found["processbench"]["accuracy_on_erroneous"] == 0.5
    assert found["processbench"]["f1"] == pytest.approx(2 / 3)
    strict = evaluate_steps(pairs, threshold=1.5)  # the first step of each is below it
    assert strict["threshold"] == strict["processbench"]["threshold"] == 1.5
    assert strict["steps"]["accuracy_on_correct"] == strict["processbench"]["accuracy_on_correct"] == 0
    assert strict["processbench"]["accuracy_on_erroneous"] == 0.5
    assert found["left_out"][0] == "1 of 4 records have no labels"
    assert found["left_out"][1].startswith("ProcessBench with a calibrated threshold: 4 of 5 parts")


@pytest.mark.parametrize("labels", [[1.0, 0.0, 1.0], [1.0, None, 0.0], [None, 1.0, 1.0]])
def test_labels_that_name_no_first_error(labels):
    found = evaluate_steps([(Record("a", "Q?", ["s"] * 3, labels), [1.0, None, 1.0])])
    assert "processbench" not in found
    assert "do not name a first error" in found["left_out"][0]


def test_cut_off_steps_are_said():
    found = evaluate_steps([(Record("a", "Q?", ["s"] * 2, [1.0, 0.0]), [1.0, None])])
    assert found["left_out"][-1] == "1 labelled steps have no score (they were cut off)"


def test_nothing_labelled():
    found = evaluate_steps([(Record("a", "Q?", ["s"]), [1.0])])
    assert found == {"left_out": ["1 of 1 records have no labels"]}


def test_scores_must_fit_the_steps():
    with pytest.raises(PQMError, match="record a: 2 scores for 1 steps"):
        evaluate_steps([(Record("a", "Q?", ["s"], [1.0]), [1.0, 2.0])])


def solutions(count, seed, prefix="question"):
    """Scores 1 lower than they should be: the best threshold is about -1."""
    rng = np.random.default_rng(seed)
    pairs = []
    for i in range(count):
        labels = [1.0] * 4 if i % 2 else [1.0, 1.0, 0.0, None]
        scores = [float(rng.normal(-3.0 if y == 0 else 1.0, 0.8)) for y in labels]
        pairs.append((Record(f"{prefix}{i}", f"{prefix} {i // 2}", ["s"] * 4, labels), scores))
    return pairs


def test_threshold_from_other_questions():
    found = evaluate_steps(solutions(200, 0), calibrate=solutions(100, 1, "other"))
    fixed, own = found["processbench"], found["processbench_calibrated"]
    others = [(q, 2 if record.labels[2] == 0 else -1) for record, q in solutions(100, 1, "other")]
    assert own["thresholds"] == [calibrate_threshold(*map(list, zip(*others, strict=True)))]
    assert own["calibrated_on"] == "other questions given"
    assert fixed["threshold"] == 0.0
    assert found["step_thresholds"]["calibrated_on"] == "other questions given"
    assert [len(found["step_thresholds"][name]) for name in ("step_accuracy", "first_error_accuracy")] == [1, 1]
    assert found["steps"]["first_error_accuracy_calibrated"] > found["steps"]["first_error_accuracy"] + 0.1
    flat = [pair for record, q in solutions(100, 1, "other") for pair in zip(q, record.labels, strict=True)]
    line = platt_scaling(*np.array([pair for pair in flat if None not in pair]).T)
    assert (found["probabilities"]["slope"], found["probabilities"]["offset"]) == ([line[0]], [line[1]])
    assert found["probabilities"]["calibrated_on"] == "other questions given"
    assert found["probabilities"]["count"] == found["steps"]["steps"]
    assert own["f1"] > fixed["f1"] + 0.1
    crossed = evaluate_steps(solutions(200, 0))["processbench_calibrated"]
    assert len(crossed["thresholds"]) == 5
    assert crossed["f1"] == pytest.approx(own["f1"], abs=0.05)


@pytest.mark.parametrize(
    ("calibrate", "message"),
    [
        (solutions(4, 1), "record question0 asks a question that is also scored"),
        ([(Record("x", "other", ["s"]), [1.0])], "record x: its labels do not name a first error"),
        ([(Record("x", "other", ["s"] * 2, [0.0, 1.0]), [1.0, 1.0])], "record x: its labels do not name a first error"),
        ([(Record("x", "other", ["s"], [0.0]), [1.0])], "erroneous and correct solutions, found 1 and 0"),
        ([], "found 0 and 0"),
        ([(Record("x", "other", ["s"], [0.0]), [])], "record x: 0 scores for 1 steps"),
    ],
)
def test_what_no_threshold_comes_from(calibrate, message):
    with pytest.raises(PQMError, match=message):
        evaluate_steps(solutions(8, 0), calibrate=calibrate)


@pytest.mark.parametrize(
    ("calibrate", "message"),
    [
        ([(Record("x", "Q?", ["s"], [1.0]), [1.0])], "record x asks a question that is also scored"),
        ([(Record("x", "other", ["s"]), [1.0])], "record x: it has no labels"),
        ([(Record("x", "other", ["s"], [1.0]), [1.0])], "needs correct and wrong steps, found 1 and 0"),
    ],
)
def test_what_no_threshold_of_steps_comes_from(calibrate, message):
    """Also where the labels name no first error, as those of PRMBench."""
    pairs = [(Record("a", "Q?", ["s"] * 3, [1.0, 0.0, 1.0]), [1.0, -1.0, 1.0])]
    with pytest.raises(PQMError, match=f"calibrate: .*{message}"):
        evaluate_steps(pairs, calibrate=calibrate)


def typed(id, labels, scores, **extra):
    return Record(id, "Q?", ["s"] * len(labels), labels, extra), scores


def test_figures_by_type():
    pairs = [
        typed("a", [1.0, 0.0], [1.0, -1.0], error_type="deception", task="GSM8K"),
        typed("b", [1.0, 0.0], [1.0, 1.0], error_type="deception", task="MATH"),
        typed("c", [1.0, 1.0], [1.0, -1.0], error_type=None, task="MATH"),
        typed("d", [1.0], [1.0]),
    ]
    found = evaluate_steps(pairs)
    assert found["by_type"]["field"] == "error_type"
    types = found["by_type"]["types"]
    assert {name: own["step_accuracy"] for name, own in types.items()} == {"deception": 0.75, "none": 0.5}
    assert types["deception"]["accuracy_on_wrong"] == 0.5
    assert types["none"]["prm_score"] is None
    assert "by error_type: 1 of 4 records lack it" in found["left_out"]
    by_task = evaluate_steps(pairs, by="task")["by_type"]["types"]
    assert {name: own["trajectories"] for name, own in by_task.items()} == {"GSM8K": 1, "MATH": 2}
    assert "by_type" not in evaluate_steps(pairs, by="nothing")


def test_table_holds_every_figure():
    few = [typed("a", [1.0, 0.0], [1.0, -1.0], error_type="deception")]
    found = json.loads(json.dumps(evaluate_steps(few)))
    lines = table(found).splitlines()
    titles = ("Steps", "Steps by error_type", "AUROC by position", "Errors by position", "Calibration", "ProcessBench")
    assert {*titles, "Left out"} <= {*lines}
    # the position alone tells these two steps apart, and their length does not
    assert ["all", "1", "1", "1.000", "1.000", "0.500"] in map(str.split, lines)
    assert ["same", "position", "-", "-"] in map(str.split, lines)
    assert ["same", "length", "1.000", "0.500"] in map(str.split, lines)
    assert any(line.split()[:2] == ["deception", "1"] for line in lines)
    # one question: no other one to take a threshold from
    assert all(value is None for name, value in found["steps"].items() if name.endswith("_calibrated"))
    assert "  step accuracy         1.000        -" in lines
    assert any("1.000 / -" in line for line in lines)
    assert not {"step_thresholds", "probabilities"} & found.keys()
    assert any(reason.startswith("calibrated step figures and probabilities: 4 of 5") for reason in found["left_out"])
    found = evaluate_steps(solutions(200, 0))
    calibrated = table(found).splitlines()
    [row] = [line for line in calibrated if line.startswith("  step  700")]
    for name in ("brier", "log_loss", "ece"):
        before, after = (found["probabilities"][when][name] for when in ("before", "after"))
        assert f"{before:.3f} / {after:.3f}" in row
    assert any(line.startswith("  calibrated, -") for line in calibrated)
    assert "  calibrated on: for each fifth of the questions, the other 4" in calibrated


def test_calibrated_figures_do_not_depend_on_the_level_of_the_scores():
    """A comparative loss is free to put all scores below 0: the fixed threshold calls every step wrong."""
    pairs = [typed(f"q{i}", r.labels, q, error_type="ab"[i % 2]) for i, (r, q) in enumerate(solutions(200, 0))]
    pairs = [(Record(r.id, r.id[:-1], r.steps, r.labels, r.extra), q) for r, q in pairs]
    level = evaluate_steps(pairs)
    low = evaluate_steps([(r, [q - 50 for q in own]) for r, own in pairs])
    assert low["steps"]["accuracy_on_correct"] == 0.0
    assert low["steps"]["step_accuracy"] == pytest.approx(1 - low["steps"]["share_correct"])
    for place in (("steps",), ("by_type", "types", "a"), ("by_type", "types", "b")):
        one, other = (reduce(getitem, place, found) for found in (low, level))
        names = [name for name in one if name.endswith("_calibrated")]
        assert len(names) == (5 if place == ("steps",) else 6)
        assert {name: one[name] for name in names} == {name: other[name] for name in names}
    assert low["steps"]["step_accuracy_calibrated"] > 0.95
    assert low["steps"]["first_error_accuracy_calibrated"] > 0.9
    assert low["probabilities"]["after"] == pytest.approx(level["probabilities"]["after"])
    assert low["probabilities"]["before"]["brier"] > 0.7 > 0.1 > low["probabilities"]["after"]["brier"]
    shift = np.subtract(level["step_thresholds"]["step_accuracy"], low["step_thresholds"]["step_accuracy"])
    assert shift == pytest.approx([50.0] * 5)


def test_prmbench(shared_data):
    """A score that knows the labels, and one that knows the position alone, on real labels."""
    records = list(read_records(shared_data("prmbench_train.jsonl"), options=ReadOptions(skip_bad=True)))
    known = evaluate_steps([(r, [1.0 if y else -1.0 for y in r.labels]) for r in records])
    types = known["by_type"]["types"]
    assert set(types) == {
        *("none", "confidence", "counterfactual", "deception"),
        *("domain_inconsistency", "missing_condition", "step_contradiction"),
    }
    assert all(own["prm_score"] == 1.0 for name, own in types.items() if name != "none")
    assert known["steps"]["share_correct"] == pytest.approx(0.878, abs=0.001)
    position = evaluate_steps([(r, [-float(t) for t in range(len(r.steps))]) for r in records])["auroc_by_position"]
    assert position["same_position"] == 0.5
    assert position["all"]["auroc"] == position["all"]["position_only"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("name", "length_only"),
    [("prmbench_train.jsonl", 0.629), ("processbench_gsm8k.json", 0.686)],
)
def test_shorter_is_better_on_real_labels(shared_data, name, length_only):
    """What a score gets that reads nothing: the figures of docs/how-to/evaluation.md."""
    records = list(read_records(shared_data(name), options=ReadOptions(skip_bad=True)))
    found = evaluate_steps([(r, [-float(len(step)) for step in r.steps]) for r in records])["auroc_by_position"]
    assert found["all"]["auroc"] == found["all"]["length_only"] == pytest.approx(length_only, abs=0.0005)
    assert found["same_length"] == 0.5
