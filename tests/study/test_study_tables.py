"""Every figure is in its row and its column."""

import copy
import re
from dataclasses import asdict, replace

import pytest
from handmade import CONFIG, every, pool, result

from pqm_fast.study.analyse import analyse
from pqm_fast.study.document import document
from pqm_fast.study.grid import Trial, cells
from pqm_fast.study.select import select
from pqm_fast.study.tables import tables


def results_of(config, folder, trials=None):
    grid = cells(config)
    found = analyse(config, grid, trials or every(grid, config), pool(folder))
    return {"config": asdict(config), "device": "CPU, 3 cores", "trials": 42, "left_out": ["5 left out"], **found}


@pytest.fixture
def found(tmp_path):
    """Results in which all figures differ, so that a figure in the wrong place is noticed."""
    found = results_of(CONFIG, tmp_path)
    count = iter(range(1, 10_000))
    fresh = lambda: next(count) / 10_000  # noqa: E731

    def interval(sign=1):
        middle = fresh()
        return {"mean": sign * middle, "low": sign * middle - 0.00004, "high": sign * middle + 0.00004}

    for cell in found["cells"]:
        cell["best_of_n"] = interval()
        cell["against"] = cell["against"] and {"mean": fresh(), "low": -0.5, "high": 0.5}
        cell["by_policy"] = {name: interval() for name in cell["by_policy"]}
        for name in ("by_aggregator", "tuning", "steps"):
            cell[name] = {key: fresh() for key in cell[name]}
        cell["steps"] |= {name: fresh() for name in STEPS}
    for own in found["pool"]["policies"].values():
        own |= {name: fresh() for name in ("mean_accuracy", "majority_vote", "pass_at_n")}
    return found


def parsed(text):
    """The tables of a section: [{(row, column): cell}]."""
    made = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        head, rule, *rows = [[part.strip() for part in line.strip("|").split("|")] for line in block.splitlines()]
        assert set(rule) == {"---"}
        assert all(len(row) == len(head) == len(rule) for row in rows)
        made.append({(row[0], column): part for row in rows for column, part in zip(head, row, strict=True)})
        assert len(made[-1]) == len(rows) * len(head)
    return made


def number(value):
    return f"{value:.3f}"


def interval(own):
    return f"{own['mean']:.3f} ({own['low']:.3f} to {own['high']:.3f})"


def difference(own):
    return f"{own['mean']:+.3f} ({own['low']:+.3f} to {own['high']:+.3f})"


def cell_of(found, **values):
    [cell] = [c for c in found["cells"] if all(c[name] == value for name, value in values.items())]
    return cell


MAIN = {"rank": 4.0, "bce": None, "orm": None}


@pytest.mark.parametrize(("section", "columns"), [("labels", ("given", "flip:0.2")), ("models", ("llama", "qwen2"))])
def test_losses_by_labels_and_by_models(found, section, columns):
    values, differences = parsed(tables(found)[section])
    for loss, zeta in MAIN.items():
        for column in columns:
            where = {"model": "llama", "labels": "given"} | {section.removesuffix("s"): column, section: column}
            where = {name: where[name] for name in ("model", "labels")}
            cell = cell_of(found, loss=loss, zeta=zeta, **where)
            assert values[loss, column] == interval(cell["best_of_n"])
            if loss != "bce":
                assert differences[loss, column] == difference(cell["against"])
    assert ("bce", columns[0]) not in differences
    assert values["rank", "best of 2"] == "rank"
    assert differences["rank", "minus bce"] == "rank"


def test_policies(found):
    [own] = parsed(tables(found)["policies"])
    for policy, figures in found["pool"]["policies"].items():
        assert own["mean accuracy", policy] == number(figures["mean_accuracy"])
        assert own["majority vote", policy] == number(figures["majority_vote"])
        assert own["any of 2 right", policy] == number(figures["pass_at_n"])
        for loss, zeta in MAIN.items():
            cell = cell_of(found, loss=loss, zeta=zeta, model="llama", labels="given")
            assert own[loss, policy] == interval(cell["by_policy"][policy])
    assert len(own) == 6 * 3


def test_zetas(found):
    [own] = parsed(tables(found)["zeta"])
    assert list(dict.fromkeys(row for row, _ in own)) == ["0", "4"]
    for zeta in (0.0, 4.0):
        cell = cell_of(found, loss="rank", zeta=zeta, model="llama", labels="given")
        assert own[f"{zeta:g}", "best of 2"] == interval(cell["best_of_n"])
        assert own[f"{zeta:g}", "minus bce"] == difference(cell["against"])
        for name, column in STEPS.items():
            assert own[f"{zeta:g}", column] == number(cell["steps"][name])


STEPS = {
    "auroc": "AUROC over all steps",
    "pair_accuracy": "pairs in order within a solution",
    "step_accuracy": "step accuracy",
    "step_accuracy_calibrated": "step accuracy, calibrated",
    "balanced_accuracy_calibrated": "balanced, calibrated",
    "first_error_accuracy": "first error",
    "first_error_accuracy_calibrated": "first error, calibrated",
}


def test_aggregators_steps_and_rates(found):
    made = {name: parsed(text) for name, text in tables(found).items()}
    [aggregators], [steps], [rates] = made["aggregators"], made["steps"], made["rates"]
    for loss, zeta in MAIN.items():
        cell = cell_of(found, loss=loss, zeta=zeta, model="llama", labels="given")
        for how in ("min", "last"):
            assert aggregators[loss, how] == number(cell["by_aggregator"][how])
        assert aggregators[loss, "chosen"] == cell["aggregate"]
        for name, column in STEPS.items():
            assert steps[loss, column] == number(cell["steps"][name])
    for cell in found["cells"]:
        zeta = "" if cell["zeta"] is None else f" (zeta {cell['zeta']:g})"
        row = f"{cell['loss']}{zeta}, {cell['model']}, labels {cell['labels']}"
        for rate in ("0.001", "0.01"):
            assert rates[row, rate] == number(cell["tuning"][rate])
        assert rates[row, "chosen"] == "0.01"
    assert len(rates) == len(found["cells"]) * 4


COMBINED = replace(
    CONFIG,
    losses=("bce", "bce+sibling", "first-error+listwise"),
    learning_rates=(0.001, 0.002, 0.004, 0.01),
    compare_learning_rates=(0.001, 0.004),
    compare_weights=(3.0, 0.5),
)


def test_combinations_have_a_table_of_rates_and_weights(tmp_path):
    found = results_of(COMBINED, tmp_path)
    for i, cell in enumerate(found["cells"]):
        if "+" in cell["loss"]:
            cell["tuning"] = {r: {w: (i + float(r)) / float(w) for w in own} for r, own in cell["tuning"].items()}
    plain, combined = parsed(tables(found)["rates"])
    for cell in found["cells"]:
        row = f"{cell['loss']}, {cell['model']}, labels {cell['labels']}"
        if cell["loss"] == "bce":
            assert plain[row, "0.01"] == number(cell["tuning"]["0.01"])
            assert plain[row, "chosen"] == "0.01"
        else:
            for rate in ("0.001", "0.004"):
                for weight in ("3", "0.5"):
                    assert combined[row, f"{rate} x {weight}"] == number(cell["tuning"][rate][weight])
            assert combined[row, "chosen"] == "0.004 x 0.5"
    assert 2 * len(plain) == len(combined) == 2 * 3 * 6
    [values, _] = parsed(tables(found)["labels"])
    assert values["bce+sibling", "given"] != "-"
    head = document(found).split("\n## ")[0]
    said = "Combinations chose from the rates 0.001, 0.004 and the weights 3, 0.5, as many trials as other losses had."
    assert said in head
    blown = dict.fromkeys(every(cells(COMBINED), COMBINED), result(diverged="step 1: loss nan"))
    text = document(results_of(COMBINED, tmp_path, blown))
    assert "Diverged: bce+sibling, llama, labels given, with every learning rate and weight." in text
    assert "Diverged: bce, llama, labels given, with every learning rate." in text


def test_older_results_have_no_weights(found):
    """They were written before there were combinations."""
    expected = document(found)
    for cell in found["cells"]:
        del cell["compare_weight"]
    for name in ("compare_weights", "compare_learning_rates"):
        del found["config"][name]
    assert document(found) == expected


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"mean": 0.1, "low": 0.05, "high": 0.15}, "**+0.100 (+0.050 to +0.150)**"),
        ({"mean": -0.1, "low": -0.15, "high": -0.05}, "**-0.100 (-0.150 to -0.050)**"),
        ({"mean": 0.1, "low": -0.05, "high": 0.25}, "+0.100 (-0.050 to +0.250)"),
        ({"mean": 0.1, "low": 0.0, "high": 0.2}, "+0.100 (+0.000 to +0.200)"),
        ({"mean": 0.1, "low": None, "high": None}, "+0.100"),
        (None, "-"),
    ],
)
def test_bold_is_what_leaves_0_out(found, own, expected):
    cell_of(found, loss="rank", zeta=4.0, model="llama", labels="given")["against"] = own
    assert parsed(tables(found)["labels"])[1]["rank", "given"] == expected


def test_the_whole_page(found):
    text = document(found)
    assert text.startswith("# Study\n")
    for part in tables(found).values():
        assert part in text
    head = text[: text.index("\n## ")]
    for fact in ("42 trainings", "600 steps", "CPU, 3 cores", "Best-of-2", "3 test questions", "2 policies", "5, 7"):
        assert fact in head
    for fact in ("0.001, 0.01", "min, last", "bce", "5 left out", "arithmetic world (seed 1)"):
        assert fact in head
    assert "Diverged" not in text
    assert "None" not in text
    assert "nan" not in text


def test_users_data_is_named(found):
    found["config"]["data"] = ("my.jsonl", "more.jsonl")
    assert "my.jsonl, more.jsonl" in document(found)
    assert "arithmetic" not in document(found)


def test_what_has_nothing_to_compare_is_left_out(tmp_path):
    config = replace(
        CONFIG,
        losses=("bce",),
        labels=("given",),
        models=("llama",),
        zetas=(),
        learning_rates=(0.01,),
        aggregate=("min",),
    )
    grid = cells(config)
    trials = {trial: result(0.5, steps=None) for trial in every(grid, config)}
    found = results_of(config, tmp_path, trials)
    assert list(tables(found)) == ["labels", "policies"]
    assert "minus bce" not in document(found)


def test_margins_of_rank_are_compared_only_if_there_are_several(tmp_path):
    assert "zeta" not in tables(results_of(replace(CONFIG, zetas=()), tmp_path))
    assert "zeta" not in tables(results_of(replace(CONFIG, zetas=(4.0,)), tmp_path))
    assert "zeta" not in tables(results_of(replace(CONFIG, losses=("bce", "orm")), tmp_path))


def test_divergence_is_reported(tmp_path):
    grid = cells(CONFIG)
    blown = result(diverged="step 1: loss nan")
    results = every(grid)
    for trial in results:
        if trial.cell.loss == "orm" and trial.cell.labels == "flip:0.2":
            results[trial] = blown
    [rank, *_] = grid
    results[Trial(rank, 0.01, 7)] = blown
    found = results_of(CONFIG, tmp_path, results)
    text = document(found)
    assert re.search(r"^Diverged: rank \(zeta 4\), llama, labels given, 1 seeds?, which (is|are) left out", text, re.M)
    assert "Diverged: orm, llama, labels flip:0.2, with every learning rate." in text
    assert text.count("Diverged") == 2
    values, differences = parsed(tables(found)["labels"])
    assert (values["orm", "flip:0.2"], differences["orm", "flip:0.2"]) == ("-", "-")
    assert values["orm", "given"] != "-"
    [rates] = parsed(tables(found)["rates"])
    assert [rates["orm, llama, labels flip:0.2", column] for column in ("0.001", "0.01", "chosen")] == ["-", "-", "-"]


def test_a_page_is_made_where_everything_diverged(tmp_path):
    results = dict.fromkeys(every(cells(CONFIG)), result(diverged="step 1: loss nan"))
    text = document(results_of(CONFIG, tmp_path, results))
    assert text.count("Diverged") == len(cells(CONFIG))
    assert "nan" not in text


def test_tables_change_nothing(found):
    before = copy.deepcopy(found)
    document(found)
    assert found == before


def test_select_takes_other_margins_only_if_asked(found):
    assert [c["loss"] for c in select(found, model="llama", labels="given")] == ["rank", "bce", "orm"]
    assert [c["zeta"] for c in select(found, loss="rank", model="llama", labels="given", zeta=(0.0, 4.0))] == [4.0, 0.0]


def test_older_results_have_no_calibrated_columns(found):
    for cell in found["cells"]:
        cell["steps"] = {name: 0.5 for name in STEPS if not name.endswith("_calibrated")}
    made = tables(found)
    assert "calibrated" not in made["steps"] + made["zeta"]
    assert "first error" in made["steps"]
