"""Where in a solution a model is wrong, against a definition in plain Python."""

import numpy as np
import pytest
from test_step_curves import steps

from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError
from pqm_fast.evaluate import by_position, cross_thresholds, evaluate_steps


def share(hits):
    hits = list(hits)
    return pytest.approx(sum(hits) / len(hits)) if hits else None


def defined(scores, labels, at_balance, at_first_error):
    """`by_position`, term by term: thresholds are one for each trajectory."""
    solutions = []
    for qs, ys, balance, level in zip(scores, labels, at_balance, at_first_error, strict=True):
        known = [(t, q, y >= 0.5) for t, (q, y) in enumerate(zip(qs, ys, strict=True), 1) if None not in (q, y)]
        wrong = next((t for t, y in enumerate(ys, 1) if y is not None and y < 0.5), None)
        called = next((t for t, q, _ in known if q < level), None)
        solutions.append((known, balance, wrong, called))
    with_steps = [solution for solution in solutions if solution[0]]
    rows = []
    for first, last in ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 30)):
        here = range(first, last + 1)
        pairs = [
            1.0 if q > p else 0.5 if q == p else 0.0
            for known, *_ in solutions
            for _, q, is_correct in known
            for t, p, is_other_correct in known
            if is_correct and not is_other_correct and t in here
        ]
        passed = {
            kind: [q >= level for known, level, *_ in solutions for t, q, y in known if t in here and y == kind]
            for kind in (True, False)
        }
        found = [called == wrong for _, _, wrong, called in with_steps if wrong in here]
        rows.append(
            {
                "first": first,
                "last": last,
                "correct": len(passed[True]),
                "wrong": len(passed[False]),
                "pair_accuracy": share(pairs),
                "accuracy_on_correct_calibrated": share(passed[True]),
                "accuracy_on_wrong_calibrated": share(not hit for hit in passed[False]),
                "first_errors": len(found),
                "first_error_accuracy_calibrated": share(found),
            }
        )
    alone = [called is None for _, _, wrong, called in with_steps if wrong is None]
    return {"rows": rows, "no_error": {"trajectories": len(alone), "first_error_accuracy_calibrated": share(alone)}}


@pytest.mark.parametrize("seed", range(3))
def test_against_the_definition(seed):
    scores, labels = steps(seed)
    labels = [[1.0 if y is not None and i % 4 == 0 else y for y in ys] for i, ys in enumerate(labels)]  # no error
    thresholds = cross_thresholds(scores, labels, [f"question {i}" for i in range(len(scores))])
    levels = (thresholds.each("balanced_accuracy"), thresholds.each("first_error_accuracy"))
    assert len({*levels[0], *levels[1]}) > 1
    found = by_position(scores, labels, thresholds)
    assert found == defined(scores, labels, *levels)
    assert found["no_error"]["trajectories"] > 10
    assert sum(row["first_errors"] for row in found["rows"]) + found["no_error"]["trajectories"] <= len(scores)
    without = by_position(scores, labels)
    assert without["rows"][0]["pair_accuracy"] == found["rows"][0]["pair_accuracy"]
    assert without["rows"][0]["accuracy_on_wrong_calibrated"] is without["no_error"]["first_error_accuracy_calibrated"]


def test_the_rows_are_parts_of_the_figures_over_all_steps():
    """Sums over the rows, weighted by their counts, are the calibrated figures of `evaluate_steps`."""
    scores, labels = steps(5)
    pairs = [
        (Record(str(i), f"question {i}", ["s"] * len(q), y), q)
        for i, (q, y) in enumerate(zip(scores, labels, strict=True))
    ]
    found = evaluate_steps(pairs)
    rows, no_error, all_steps = found["by_position"]["rows"], found["by_position"]["no_error"], found["steps"]
    for kind in ("correct", "wrong"):
        name = f"accuracy_on_{kind}_calibrated"
        mean = np.average([row[name] for row in rows], weights=[row[kind] for row in rows])
        assert mean == pytest.approx(all_steps[name])
    name, parts = "first_error_accuracy_calibrated", [(row["first_errors"], row) for row in rows if row["first_errors"]]
    parts += [(no_error["trajectories"], no_error)] if no_error["trajectories"] else []
    assert sum(n for n, _ in parts) == all_steps["trajectories"]
    assert sum(n * part[name] for n, part in parts) / all_steps["trajectories"] == pytest.approx(all_steps[name])
    aurocs = found["auroc_by_position"]["rows"]
    assert [(r["first"], r["last"], r["correct"], r["wrong"]) for r in rows] == [
        (r["first"], r["last"], r["correct"], r["wrong"]) for r in aurocs
    ]


def test_undefined_figures_are_none():
    nothing = {"trajectories": 0, "first_error_accuracy_calibrated": None}
    assert by_position([], []) == {"rows": [], "no_error": nothing}
    [row] = by_position([[1.0], [], [None]], [[1.0], [], [0.0]])["rows"]
    assert (row["correct"], row["wrong"], row["pair_accuracy"], row["first_errors"]) == (1, 0, None, 0)
    # the first error has no score: it is one, and cannot be found
    [_, row] = by_position([[1.0, None]], [[1.0, 0.0]])["rows"]
    assert (row["wrong"], row["first_errors"]) == (0, 1)


def test_bad_input():
    with pytest.raises(PQMError, match="1 scores but 2 labels"):
        by_position([[1.0]], [[1.0, 0.0]])
