"""Everything that step labels allow, from records to figures."""

import json

import numpy as np
import pytest

from pqm_fast.data import read_records
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError
from pqm_fast.evaluate import calibrate_threshold, evaluate_steps, table


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
    found = json.loads(json.dumps(evaluate_steps([typed("a", [1.0, 0.0], [1.0, -1.0], error_type="deception")])))
    lines = table(found).splitlines()
    for title in ("Steps", "Steps by error_type", "AUROC by position", "Calibration", "ProcessBench", "Left out"):
        assert title in lines
    assert "  all        1        1      1.000  1.000" in lines  # the position alone tells these two steps apart
    assert "  same step                  -      -" in lines
    assert any(line.split()[:2] == ["deception", "1"] for line in lines)
    calibrated = table(evaluate_steps(solutions(200, 0))).splitlines()
    assert any(line.startswith("  calibrated, -") for line in calibrated)
    assert "  calibrated on: for each fifth of the questions, the other 4" in calibrated


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
