"""The choice of rates and aggregators and the comparison of losses, on results made up by hand."""

import json
import math
from dataclasses import replace

import pytest
from handmade import CONFIG, STEPS, every, pool, result
from scipy.stats import t

from pqm_fast.errors import PQMError
from pqm_fast.study.analyse import analyse
from pqm_fast.study.choice import choose
from pqm_fast.study.grid import Cell, Trial, cells
from pqm_fast.study.trial_result import read_result


def tuned(**figures):
    return {"diverged": None, "tuning": figures}


BLOWN = {"diverged": "step 3: loss nan"}


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ({0.1: tuned(min=0.5, last=0.6), 0.2: tuned(min=0.55, last=0.1)}, (0.1, "last")),
        ({0.1: tuned(min=0.5, last=0.6), 0.2: tuned(min=0.7, last=0.1)}, (0.2, "min")),
        ({0.2: tuned(min=0.5, last=0.5), 0.1: tuned(min=0.2, last=0.5)}, (0.1, "last")),  # equal: the lower rate
        ({0.2: tuned(last=0.5, min=0.5), 0.3: tuned(last=0.5, min=0.5)}, (0.2, "last")),  # equal: as they were named
        ({0.2: BLOWN, 0.1: tuned(min=0.0)}, (0.1, "min")),
        ({0.1: BLOWN, 0.2: BLOWN}, None),
        ({(0.1, 3.0): tuned(min=0.5), (0.1, 1.0): tuned(min=0.7), (0.2, 3.0): tuned(min=0.8)}, (0.2, 3.0, "min")),
        ({(0.2, 1.0): tuned(min=0.5), (0.1, 3.0): tuned(min=0.5), (0.1, 1.0): tuned(min=0.5)}, (0.1, 1.0, "min")),
    ],
)
def test_rate_weight_and_aggregator_are_chosen(results, expected):
    """Results by rate, or by (rate, weight)."""
    cell = Cell("bce", None, "llama", "given")
    trials = {key if isinstance(key, tuple) else (key, None): own for key, own in results.items()}
    found = choose({Trial(cell, rate, 5, weight): own for (rate, weight), own in trials.items()})
    if expected is None:
        assert found is None
    else:
        *numbers, aggregator = expected
        rate, weight = numbers if len(numbers) == 2 else (*numbers, None)
        assert found == (Trial(cell, rate, 5, weight), aggregator)


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"diverged": nu')
    with pytest.raises(PQMError, match=r"a\.json: damaged .*; delete it, and the trial is done again"):
        read_result(tmp_path / "a.json")


def by(found, **values):
    [cell] = [cell for cell in found["cells"] if all(cell[name] == value for name, value in values.items())]
    return cell


def test_means_and_differences_by_hand(tmp_path):
    """Two seeds and three questions. rank: 0.9, 0.6, 0.3 and 0.7, 0.4, 0.4; bce: 0.5, 0.4, 0.3 and 0.6, 0.5, 0.1.

    Means over policies: those of a. rank minus bce is 0.4, 0.2, 0.0 and 0.1, -0.1, 0.3: 0.15 in the mean, seeds 0.2
    and 0.1, questions 0.25, 0.05 and 0.15. MS: seeds 3 * 2 * 0.05^2 = 0.015, questions 2 * 2 * 0.1^2 / 2 = 0.02; what
    is left is 0.1, 0.1, -0.2 and the opposite, MS 2 * 0.06 / 2 = 0.06. So seeds add nothing.
    """
    grid = cells(CONFIG)
    rank = {5: result(0.8, (0.9, 0.6, 0.3)), 7: result(0.1, (0.7, 0.4, 0.4))}
    bce = {5: result(0.8, (0.5, 0.4, 0.3)), 7: result(0.1, (0.6, 0.5, 0.1))}
    found = analyse(CONFIG, grid, every(grid, rank=rank, bce=bce), pool(tmp_path))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert len(found["cells"]) == len(grid) == 3 * 2 + 3 + 1

    cell = by(found, loss="rank", zeta=4.0, model="llama", labels="given")
    assert (cell["learning_rate"], cell["aggregate"], cell["diverged"]) == (0.01, "min", 0)
    assert cell["tuning"] == {"0.001": 0.4, "0.01": 0.8}
    assert cell["best_of_n"]["mean"] == pytest.approx(0.55)
    assert (cell["best_of_n"]["low"], cell["best_of_n"]["high"]) == (0.0, 1.0)  # +-0.57 with two degrees of freedom
    half = t.ppf(0.975, 2) * math.sqrt(0.02 / 6)
    assert cell["against"] == pytest.approx({"mean": 0.15, "low": 0.15 - half, "high": 0.15 + half})
    assert by(found, loss="bce", model="llama", labels="given")["against"] is None

    # policy b has only the first and the last question
    assert cell["by_policy"]["a"]["mean"] == pytest.approx(0.55)
    assert cell["by_policy"]["b"]["mean"] == pytest.approx((0.9 + 0.3 + 0.7 + 0.4) / 4)
    assert cell["by_aggregator"] == pytest.approx({"min": 0.55, "last": 0.0})
    assert cell["curve"] == pytest.approx({"1": 0.25, "2": 0.55})
    assert cell["steps"] == {"auroc": 0.75, "pair_accuracy": 0.5, "step_accuracy": 0.625}

    # the same trials stand for every cell of a loss here, so each is compared on its own model and labels
    for other in found["cells"]:
        if other["loss"] == "rank":
            assert other["against"]["mean"] == pytest.approx(0.15)
    orm = by(found, loss="orm", model="qwen2")
    assert orm["against"]["mean"] == pytest.approx(0.5 - 0.4)


def test_a_combination_has_figures_by_rate_and_weight(tmp_path):
    """Four trials as every other loss; the other seeds have the chosen rate and weight."""
    config = replace(
        CONFIG,
        losses=("bce", "bce+sibling"),
        learning_rates=(0.001, 0.002, 0.004, 0.01),
        compare_learning_rates=(0.001, 0.004),
        compare_weights=(3.0, 0.5),
    )
    grid = cells(config)
    combined = Cell("bce+sibling", None, "llama", "given")
    results = every(grid, config, bce={5: result(0.7, (0.2,) * 3), 7: result(0.7, (0.3,) * 3)})
    for seed, tuning, test in ((5, 0.9, 0.5), (7, 0.1, 0.8)):
        results[Trial(combined, 0.001, seed, 0.5)] = result(tuning, (test,) * 3)
    results[Trial(combined, 0.004, 5, 3.0)] = result(diverged="step 2: loss nan")
    found = analyse(config, grid, results, pool(tmp_path))
    json.dumps(found, allow_nan=False)
    cell = by(found, loss="bce+sibling", model="llama", labels="given")
    assert cell["tuning"] == {"0.001": {"3": 0.4, "0.5": 0.9}, "0.004": {"3": None, "0.5": 0.6}}
    assert (cell["learning_rate"], cell["compare_weight"], cell["aggregate"]) == (0.001, 0.5, "min")
    assert cell["best_of_n"]["mean"] == pytest.approx(0.65)
    assert cell["against"]["mean"] == pytest.approx(0.4)
    plain = by(found, loss="bce", model="llama", labels="given")
    assert plain["tuning"].keys() == {"0.001", "0.002", "0.004", "0.01"}
    assert (plain["learning_rate"], plain["compare_weight"]) == (0.01, None)


def test_differences_are_from_the_baseline_of_the_same_model_and_labels(tmp_path):
    grid = cells(CONFIG)
    results = every(grid)
    for trial in results:
        if trial.cell.loss == "bce":
            level = {"llama": 0.1, "qwen2": 0.2}[trial.cell.model] + (0.2 if trial.cell.labels == "flip:0.2" else 0)
            results[trial] = result(0.6, (level,) * 3)
    found = analyse(CONFIG, grid, results, pool(tmp_path))
    differences = {
        (c["loss"], c["zeta"], c["model"], c["labels"]): c["against"] and round(c["against"]["mean"], 9)
        for c in found["cells"]
    }
    assert differences == {
        ("rank", 4.0, "llama", "given"): 0.4,
        ("bce", None, "llama", "given"): None,
        ("orm", None, "llama", "given"): 0.4,
        ("rank", 4.0, "llama", "flip:0.2"): 0.2,
        ("bce", None, "llama", "flip:0.2"): None,
        ("orm", None, "llama", "flip:0.2"): 0.2,
        ("rank", 4.0, "qwen2", "given"): 0.3,
        ("bce", None, "qwen2", "given"): None,
        ("orm", None, "qwen2", "given"): 0.3,
        ("rank", 0.0, "llama", "given"): 0.4,
    }


def test_a_rank_baseline_has_the_main_margin(tmp_path):
    config = replace(CONFIG, baseline="rank")
    grid = cells(config)
    results = every(grid)
    for trial in results:
        if trial.cell.zeta == 0.0:
            results[trial] = result(0.6, (0.2,) * 3)
    found = analyse(config, grid, results, pool(tmp_path))
    assert by(found, zeta=0.0)["against"]["mean"] == pytest.approx(-0.3)
    assert by(found, loss="rank", zeta=4.0, model="llama", labels="given")["against"] is None


def test_the_aggregator_is_chosen_on_the_tuning_pool_with_the_first_seed(tmp_path):
    grid = cells(CONFIG)
    # by last all is 0.9 on test; only the first seed's tuning pool counts
    first, second = result(0.7, (0.1,) * 3), result(0.2, (0.2,) * 3, last=0.9)
    found = analyse(CONFIG, grid, every(grid, orm={5: first, 7: second}), pool(tmp_path))
    cell = by(found, loss="orm", labels="flip:0.2")
    assert cell["aggregate"] == "min"
    assert cell["best_of_n"]["mean"] == pytest.approx(0.15)
    found = analyse(CONFIG, grid, every(grid, orm={5: second, 7: first}), pool(tmp_path))
    cell = by(found, loss="orm", labels="flip:0.2")
    assert cell["aggregate"] == "last"
    assert cell["best_of_n"]["mean"] == pytest.approx(0.45)


def test_seeds_that_diverged_are_left_out_on_both_sides(tmp_path):
    grid = cells(CONFIG)
    rank = {5: result(0.8, (0.9, 0.6, 0.3)), 7: result(diverged="step 9: loss nan")}
    bce = {5: result(0.8, (0.5, 0.4, 0.3)), 7: result(0.1, (1.0, 1.0, 1.0))}
    found = analyse(CONFIG, grid, every(grid, rank=rank, bce=bce), pool(tmp_path))
    json.dumps(found, allow_nan=False)
    cell = by(found, loss="rank", zeta=4.0, model="llama", labels="given")
    assert cell["diverged"] == 1
    assert cell["best_of_n"]["mean"] == pytest.approx(0.6)
    assert cell["against"]["mean"] == pytest.approx(0.2)  # not against the seed of bce that rank has none for
    assert by(found, loss="bce", model="llama", labels="given")["best_of_n"]["mean"] == pytest.approx(0.7)


def test_no_baseline_to_compare_with(tmp_path):
    """All rates of the baseline diverged with the first seed, so it has none."""
    grid = cells(CONFIG)
    blown = result(diverged="step 9: loss nan")
    results = every(grid)
    for seed, own in ((5, result(0.9)), (7, blown)):
        results[Trial(Cell("rank", 4.0, "llama", "given"), 0.01, seed)] = own
    for rate in CONFIG.learning_rates:
        results[Trial(Cell("bce", None, "llama", "given"), rate, 5)] = blown
    found = analyse(CONFIG, grid, results, pool(tmp_path))
    assert by(found, loss="rank", zeta=4.0, model="llama", labels="given")["against"] is None
    cell = by(found, loss="bce", model="llama", labels="given")
    assert cell == {
        "loss": "bce",
        "zeta": None,
        "model": "llama",
        "labels": "given",
        "tuning": {"0.001": None, "0.01": None},
    }


def test_a_rate_that_diverged_is_not_chosen(tmp_path):
    grid = cells(CONFIG)
    results = every(grid)
    for trial in results:
        if trial.learning_rate == 0.01:
            results[trial] = result(diverged="step 1: loss inf")
    found = analyse(CONFIG, grid, results, pool(tmp_path))
    assert {cell["learning_rate"] for cell in found["cells"]} == {0.001}
    assert {json.dumps(cell["tuning"]) for cell in found["cells"]} == {'{"0.001": 0.4, "0.01": null}'}


def test_everything_diverged(tmp_path):
    grid = cells(CONFIG)
    results = dict.fromkeys(every(grid), result(diverged="step 1: loss inf"))
    found = analyse(CONFIG, grid, results, pool(tmp_path))
    json.dumps(found, allow_nan=False)
    assert all("best_of_n" not in cell and "against" not in cell for cell in found["cells"])
    assert found["pool"]["questions"] == 3


def test_without_step_labels_there_are_no_step_figures(tmp_path):
    grid = cells(CONFIG)
    some = {5: result(0.8, steps=None), 7: result(0.1, steps=None)}
    found = analyse(CONFIG, grid, every(grid, rank=some), pool(tmp_path))
    assert by(found, loss="rank", model="qwen2")["steps"] is None
    assert by(found, loss="bce", model="qwen2")["steps"]["auroc"] == STEPS["auroc"]


def test_figures_that_do_not_depend_on_the_loss(tmp_path):
    """Answers 1 and 2, 1 is right: a votes 1 2, 2 2 and 2 1; b votes 1 1 and 2 2. A tie is shared."""
    found = analyse(CONFIG, cells(CONFIG), every(cells(CONFIG)), pool(tmp_path))["pool"]
    assert (found["questions"], found["n"]) == (3, 2)
    assert found["policies"] == {
        "a": {
            "questions": 3,
            "mean_accuracy": pytest.approx(1 / 3),
            "majority_vote": pytest.approx(1 / 3),
            "pass_at_n": pytest.approx(2 / 3),
        },
        "b": {"questions": 2, "mean_accuracy": 0.5, "majority_vote": 0.5, "pass_at_n": 0.5},
    }
