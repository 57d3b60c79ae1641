from pathlib import Path

import pytest
from report_files import pool, results, write_results, write_run

from pqm_fast.report.ablation import ablation
from pqm_fast.report.charts import best_of_n_charts
from pqm_fast.report.groups import group_evaluations
from pqm_fast.report.runs import Run, find_runs


def cells(table, name, group=None):
    """The cells of a column, by its heading."""
    k = next(k for k, c in enumerate(table.columns) if c.name == name and group in (None, c.group))
    return [row[1 + len(table.options) + k] for row in table.rows]


def test_options_that_differ_are_columns_and_the_best_is_marked(tmp_path):
    folders = [
        write_run(tmp_path / "a", auroc=0.8, loss="rank", log_every=5),
        write_run(tmp_path / "b", auroc=0.9, loss="bce"),
        write_run(tmp_path / "c", auroc=0.9, loss="rank", label_threshold=0.5),
    ]
    table = ablation(find_runs([str(folder) for folder in folders]))
    assert table.options == ["loss", "label_threshold"]
    assert [[cell.text for cell in row[:3]] for row in table.rows] == [
        ["a", "rank", "none"],
        ["b", "bce", "none"],
        ["c", "rank", "0.5"],
    ]
    assert [(cell.text, cell.is_best) for cell in cells(table, "AUROC")] == [
        ("0.800", False),
        ("0.900", True),
        ("0.900", True),
    ]
    assert [cell.text for cell in cells(table, "optimizer steps")] == ["40"] * 3
    assert not any(cell.is_best for name in ("loss", "optimizer steps") for cell in cells(table, name))
    assert not table.seeds


def test_seeds_share_a_row(tmp_path):
    folders = [write_run(tmp_path / f"rank{s}", seed=s, auroc=0.7 + 0.1 * s) for s in (0, 1, 2)]
    folders.append(write_run(tmp_path / "bce", seed=0, auroc=0.75, loss="bce"))
    table = ablation(find_runs([str(folder) for folder in folders]))
    assert table.seeds
    assert table.options == ["loss"]
    assert [(row[0].text, row[0].spread) for row in table.rows] == [("rank0", "and 2 more, seeds 0, 1, 2"), ("bce", "")]
    mean, single = cells(table, "AUROC")
    assert (mean.text, mean.spread, mean.is_best) == ("0.800", "±0.100", True)
    assert "mean of 0.700, 0.800, 0.900" in mean.tooltip
    assert (single.text, single.spread, single.is_best) == ("0.750", "", False)


@pytest.mark.parametrize(("option", "other"), [("epochs", 3), ("max_steps", 20)])
def test_runs_of_another_length_have_a_row_of_their_own(tmp_path, option, other):
    folders = [write_run(tmp_path / f"seed{s}", seed=s, save_every=s) for s in (1, 2)]
    folders.append(write_run(tmp_path / "length", seed=3, **{option: other}))
    table = ablation(find_runs([str(folder) for folder in folders]))
    assert table.options == [option]
    assert [row[0].text for row in table.rows] == ["seed1", "length"]


def test_figures_of_evaluations(tmp_path):
    for name, good in (("poor", -1.0), ("good", 2.0)):
        write_results(tmp_path / f"{name}.json", pool(good))
    table = ablation(find_runs([str(tmp_path)]))
    good, poor = ({c.name: c.values[i] for c in table.columns} for i in (0, 1))
    stored = results(pool(2.0))
    assert good["best of 8, min"] == stored["overall"]["best_of_n"]["min"]["8"]["mean"] == 1.0
    assert poor["best of 8, min"] == 0.0
    assert good["mean accuracy"] == poor["mean accuracy"] == 0.5
    assert good["AUROC"] == stored["steps"]["auroc"]
    assert good["F1, fixed"] == stored["processbench"]["f1"]
    assert good["length only"] == stored["auroc_by_position"]["all"]["length_only"]
    assert good["equally long steps"] == stored["auroc_by_position"]["same_length"]
    best, worst = cells(table, "best of 8, min")
    assert (best.is_best, worst.is_best) == (True, False)
    assert best.tooltip.startswith("95% interval ")
    calibrated = cells(table, "calibration error")
    assert [cell.is_best for cell in calibrated] == [c.value == min(c.value for c in calibrated) for c in calibrated]
    assert not any(cell.is_best for cell in (*cells(table, "mean accuracy"), *cells(table, "pass@8")))


def test_the_vote_is_of_as_many_as_the_best_is_of(tmp_path):
    """Six of ten candidates are right: the vote of ten is always right, that of eight is tied in 15 of 45 subsets."""
    rows = [
        row | {"completions": [row["completions"][0], r"\boxed{2}" if row["correct"] else r"\boxed{3}"]}
        for row in pool(1.0, ("a", "b", "c"))
        if row["correct"] or row["policy"] != "a"
    ]
    [column] = [
        c for c in ablation(find_runs([str(write_results(tmp_path / "r.json", rows))])).columns if "vote" in c.name
    ]
    assert column.name == "vote of 8"
    assert column.values == [pytest.approx(1 - 15 / 45 / 2)]


def test_results_of_different_data_are_kept_apart():
    three = ("weak", "strong", "third")
    runs = [
        Run(Path("a"), "a", evaluations={"gsm8k": results(pool(1.0)), "math": results(pool(1.0, three))}),
        Run(Path("b"), "b", evaluations={"other name": results(pool(0.0, three))}),
        Run(Path("c"), "c", evaluations={"gsm8k": results(pool(0.0))}),
        Run(Path("d"), "d"),
    ]
    first, second = group_evaluations(runs)
    assert (first.title, list(first.by_run)) == ("gsm8k", [0, 2])
    assert (second.title, list(second.by_run)) == ("math, other name", [0, 1])
    table = ablation(runs)
    assert [cell.text for cell in cells(table, "mean accuracy", "gsm8k, solutions")] == ["0.500", "–", "0.500", "–"]
    assert [cell.text for cell in cells(table, "mean accuracy", "math, other name, solutions")] == [
        "0.500",
        "0.500",
        "–",
        "–",
    ]


def test_data_of_one_size_are_told_apart_by_what_is_right():
    wrong = [row | {"correct": False} for row in pool(1.0)]
    runs = [Run(Path(name), name, evaluations={name: results(rows)}) for name, rows in (("a", pool(1.0)), ("b", wrong))]
    assert [list(group.by_run) for group in group_evaluations(runs)] == [[0], [1]]


def test_the_same_data_evaluated_twice_by_one_run_stays_two():
    runs = [Run(Path("a"), "a", evaluations={"first": results(pool(1.0)), "again": results(pool(0.0))})]
    assert [group.title for group in group_evaluations(runs)] == ["first", "again"]


def test_the_best_is_marked_by_the_calibrated_figure(tmp_path):
    """`low` tells all steps apart, far below the threshold 0; `level` is a worse model whose scores lie around it."""
    low = [row | {"scores": [q - 50 for q in row["scores"]]} for row in pool(2.0)]
    level = [row | {"scores": [row["scores"][0], 1.5 - 0.1 * i]} for i, row in enumerate(pool(-1.0))]
    write_results(tmp_path / "low.json", low)
    write_results(tmp_path / "level.json", level)
    runs = find_runs([str(tmp_path)])
    table = ablation(runs)
    assert [row[0].text for row in table.rows] == ["level", "low"]
    for name in ("step accuracy", "first error"):
        worse, better = (cell.value for cell in cells(table, f"{name}, fixed"))
        assert worse > better
        assert not any(cell.is_best for cell in cells(table, f"{name}, fixed"))
        worse, better = cells(table, f"{name}, calibrated")
        assert (worse.is_best, better.is_best) == (False, True)
    # results of before there were calibrated figures are shown, and nothing in them is marked by the fixed threshold
    for run in runs:
        [result] = run.evaluations.values()
        for name in [name for name in result["steps"] if name.endswith("_calibrated")]:
            del result["steps"][name]
        for row in (result["auroc_by_position"]["all"], *result["auroc_by_position"]["rows"]):
            del row["length_only"]
        del result["auroc_by_position"]["same_length"], result["step_thresholds"]
    older = ablation(runs)
    assert not {"step accuracy, calibrated", "length only", "equally long steps"} & {c.name for c in older.columns}
    assert not any(cell.is_best for cell in cells(older, "step accuracy, fixed"))
    assert [cell.is_best for cell in cells(older, "AUROC")] == [False, True]


def test_a_policy_with_one_candidate_has_no_best_of_n(tmp_path):
    write_results(tmp_path / "once.json", [row for row in pool(1.0, ("only",)) if row["id"].endswith("-0")])
    [run] = find_runs([str(tmp_path / "once.json")])
    table = ablation([run])
    names = {column.name for column in table.columns}
    assert "mean accuracy" in names
    assert not any(name.startswith(("best of", "pass@", "vote")) for name in names)
    [group] = group_evaluations([run])
    assert best_of_n_charts(group, colour_by_aggregator=True) == []
    once = [row | {"policy": "once"} for row in pool(1.0, ("weak",)) if row["id"].endswith("-0")]
    write_results(tmp_path / "mixed.json", [*pool(1.0), *once])
    [group] = group_evaluations(find_runs([str(tmp_path / "mixed.json")]))
    titles = [chart["title"].split(" (")[0] for chart in best_of_n_charts(group, colour_by_aggregator=True)]
    assert titles == ["all candidates", "strong", "weak"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_that_diverged(tmp_path, value):
    folders = [write_run(tmp_path / name, seed=s) for s, name in enumerate(("a", "b"))]
    runs = find_runs([str(folder) for folder in (*folders, write_run(tmp_path / "c", loss="mse"))])
    for row in runs[0].metrics:
        row |= {"loss": value, "auroc": value}
    table = ablation(runs)
    assert [cell.text for cell in cells(table, "AUROC")] == [str(value), "0.800"]
    assert not any(cell.is_best for cell in cells(table, "loss"))
