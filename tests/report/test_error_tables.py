"""The tables of where which model is wrong."""

import re
from html import unescape
from pathlib import Path

import numpy as np
from report_files import results, solution

from pqm_fast.report.errors import error_tables
from pqm_fast.report.groups import group_evaluations
from pqm_fast.report.runs import Run


def rows_of(weak_at, seed, field="error_type"):
    """Forty questions with an error of one of two kinds and one without; the model is weak at one kind."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(120):
        kind = ("early", "late", None)[i % 3]
        labels = [1.0] * 6
        if kind:
            labels[1 if kind == "early" else 4] = 0.0
        skill = 0.2 if kind == weak_at else 3.0
        scores = [float(q) for q in rng.normal([skill * (2 * y - 1) for y in labels], 1)]
        rows.append(solution(f"s{i}", scores, labels, **{field: kind}) | {"prompt": f"Question {i // 3}?"})
    return rows


def tables_of(*by_run):
    runs = [Run(Path(name), name, evaluations={"test": found}) for name, found in zip("abc", by_run, strict=False)]
    [group] = group_evaluations(runs)
    return error_tables(group, [run.name for run in runs])


def parsed(html):
    """{title: [[text of each cell]]}; a cell that is marked ends with a star."""
    tables = {}
    for title, table in re.findall(r"<h4>(.*?)</h4>.*?<table.*?>(.*?)</table>", html, re.DOTALL):
        tables[unescape(title)] = [
            [
                unescape(re.sub("<small>", " ", text)).replace("</small>", "") + ("*" if "best" in attributes else "")
                for attributes, text in re.findall(r"<t[hd]([^>]*)>(.*?)</t[hd]>", row)
            ]
            for row in re.findall(r"<tr.*?>(.*?)</tr>", table)
        ]
    return tables


def test_each_cell_is_a_figure_of_evaluate_and_the_best_is_marked():
    a, b = results(rows_of("early", 0)), results(rows_of("late", 1))
    tables = parsed(tables_of(a, b))
    assert list(tables) == ["Where models are wrong, by error_type", "Where models are wrong, by position"]
    head, names, *rows = tables["Where models are wrong, by error_type"]
    assert head == ["", "wrong steps missed", "pairs in order", "first error found", "PRMScore"]
    assert names == ["error_type", "solutions", *"abababab"]
    assert [row[:2] for row in rows] == [["early", "40"], ["late", "40"], ["none", "40"]]
    for name, row in zip(("early", "late"), rows, strict=False):
        for k, found in enumerate((a, b)):
            own = found["by_type"]["types"][name]
            mark = "*" if (name == "early") == (k == 1) else ""
            missed, false = (1 - own[f"accuracy_on_{kind}_calibrated"] for kind in ("wrong", "correct"))
            assert row[2 + k] == f"{missed:.3f} {false:.3f}"
            assert row[4 + k] == f"{own['pair_accuracy']:.3f}{mark}"
            assert row[6 + k] == f"{own['first_error_accuracy_calibrated']:.3f}"
            assert row[8 + k] == f"{own['prm_score_calibrated']:.3f} {own['prm_score']:.3f}{mark}"
    none = rows[2]
    false = [1 - found["by_type"]["types"]["none"]["accuracy_on_correct_calibrated"] for found in (a, b)]
    assert none[2:6] == [*(f"– {share:.3f}" for share in false), "–", "–"]

    head, names, *rows = tables["Where models are wrong, by position"]
    assert head == ["", "wrong steps missed", "pairs in order", "first error found"]
    assert names == ["step", "wrong steps", "first errors", *"ababab"]
    assert [row[:3] for row in rows] == [
        ["1", "0", "0"], ["2", "40", "40"], ["3–4", "0", "0"], ["5–6", "40", "40"], ["no error", "", "40"],
    ]  # fmt: skip
    at_two = [found["by_position"]["rows"][1] for found in (a, b)]
    assert rows[1][5:7] == [f"{at_two[0]['pair_accuracy']:.3f}", f"{at_two[1]['pair_accuracy']:.3f}*"]
    no_error = [found["by_position"]["no_error"]["first_error_accuracy_calibrated"] for found in (a, b)]
    assert rows[4][7:] == [f"{share:.3f}" for share in no_error]


def test_a_model_that_calls_every_step_wrong_wins_nothing():
    """It misses no wrong step, and finds every error at step 1."""
    a, b = (results(rows_of("early", 0)) for _ in range(2))
    calls_all = {"accuracy_on_wrong_calibrated": 1.0, "accuracy_on_correct_calibrated": 0.0}
    for row in (*b["by_type"]["types"].values(), *b["by_position"]["rows"]):
        row |= calls_all | {"first_error_accuracy_calibrated": 1.0}
    assert "*" not in str(parsed(tables_of(a, b)).values())


def test_numbers_that_differ_by_model_are_a_range():
    a, b, c = (results(rows_of("early", 0)) for _ in range(3))
    b["by_type"]["types"]["early"]["trajectories"] = 1200
    del c["by_type"]["types"]["early"]
    rows = parsed(tables_of(a, b, c))["Where models are wrong, by error_type"]
    assert rows[2][:2] == ["early", "40 to 1,200"]
    assert rows[3][:2] == ["late", "40"]


def test_one_model_has_nothing_marked():
    html = tables_of(results(rows_of("early", 0)))
    assert "*" not in str(parsed(html).values())
    assert "is marked" not in html


def test_equal_values_are_not_marked():
    found = results(rows_of("early", 0))
    assert "*" not in str(parsed(tables_of(found, found)).values())


def test_older_results_and_other_fields():
    a, b = results(rows_of("early", 0)), results(rows_of("late", 1))
    del a["by_position"], b["by_position"]
    b["by_type"]["field"] = "task"
    assert list(parsed(tables_of(a, b))) == ["Where models are wrong, by error_type", "Where models are wrong, by task"]
    del a["by_type"], b["by_type"]
    assert tables_of(a, b) == ""
