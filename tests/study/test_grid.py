"""The cells of the grid, and names that tell every trial from every other."""

import re
from dataclasses import replace

import pytest

from pqm_fast.common.combination import parse_loss
from pqm_fast.errors import PQMError
from pqm_fast.study.config import StudyConfig
from pqm_fast.study.grid import Cell, Trial, cells, tuning_trials


def test_cells_of_given_axes_in_order():
    config = StudyConfig(
        losses=("bce", "rank", "pairwise"), zeta=2.0, zetas=(0.0, 2.0, 8.0, 0.0), labels=("given", "flip:0.2"),
        models=("qwen2", "llama"),
    )  # fmt: skip
    assert cells(config) == [
        Cell("bce", None, "qwen2", "given"),
        Cell("rank", 2.0, "qwen2", "given"),
        Cell("pairwise", 2.0, "qwen2", "given"),
        Cell("bce", None, "qwen2", "flip:0.2"),
        Cell("rank", 2.0, "qwen2", "flip:0.2"),
        Cell("pairwise", 2.0, "qwen2", "flip:0.2"),
        Cell("bce", None, "llama", "given"),
        Cell("rank", 2.0, "llama", "given"),
        Cell("pairwise", 2.0, "llama", "given"),
        Cell("rank", 0.0, "qwen2", "given"),
        Cell("rank", 8.0, "qwen2", "given"),
    ]


def test_only_losses_with_a_margin_have_a_zeta():
    losses = ("rank", "rank-theory", "rank-first-error", "pairwise", "crm", "bce", "mse", "orm")
    found = {cell.loss: cell.zeta for cell in cells(StudyConfig(losses=losses, zetas=(), labels=("given",)))}
    with_margin = {"rank", "rank-theory", "pairwise"}  # what the formulas in docs/explanation/method.md have a zeta in
    assert found == {loss: 4.0 if loss in with_margin else None for loss in losses}


COMBINED = {
    "losses": ("bce", "bce+sibling", "first-error+group-rank", "listwise"),
    "learning_rates": (1e-3, 2e-3, 4e-3, 8e-3),
    "compare_learning_rates": (1e-3, 4e-3),
    "compare_weights": (1.0, 0.5),
    "labels": ("given",),
}


def test_every_loss_has_as_many_trials_to_choose_from():
    config = StudyConfig(**COMBINED)
    found = {cell.loss: tuning_trials(config, cell) for cell in cells(config)}
    assert [cell.zeta for cell in cells(config)] == [None, None, 4.0, None]  # group-rank has a margin
    for loss, trials in found.items():
        own = [(trial.learning_rate, trial.compare_weight, trial.seed) for trial in trials]
        if "+" in loss:
            assert own == [(1e-3, 1.0, 0), (1e-3, 0.5, 0), (4e-3, 1.0, 0), (4e-3, 0.5, 0)]
        else:
            assert own == [(rate, None, 0) for rate in config.learning_rates]
    config = StudyConfig(losses=("bce+sibling",), baseline="bce+sibling", compare_weights=(2.0,))
    assert [t.learning_rate for t in tuning_trials(config, cells(config)[0])] == [1e-3, 2e-3]  # those of other losses


@pytest.mark.parametrize("text", ["bce", "sibling", "bce+sibling", "rank-first-error+listwise-softmin"])
def test_losses_that_can_be(text):
    loss, compare = parse_loss(text)
    assert text == loss if compare is None else text == f"{loss}+{compare}"


@pytest.mark.parametrize(
    "text",
    ["", "bcee", "bce+", "+sibling", "bce+mse", "sibling+bce", "sibling+listwise", "bce+sibling+listwise", "none"],
)
def test_losses_that_cannot_be(text):
    """Named are the losses that there are, and those that can be joined."""
    with pytest.raises(PQMError) as found:
        StudyConfig(losses=("bce", text))
    start, single, joined = re.fullmatch(
        r"losses (.*): choose a loss \((.*)\), or join (.*)", str(found.value)
    ).groups()
    assert start == text
    assert {"bce", "rank", "sibling", "first-error-noisy"} <= set(single.split(", "))
    first, second = joined.removeprefix("one of ").removesuffix(", as bce+sibling").split(" with one of ")
    assert "bce" in first.split(", ")
    assert "sibling" in second.split(", ")
    assert not set(first.split(", ")) & set(second.split(", "))


def test_further_margins_are_those_of_rank():
    assert cells(StudyConfig(losses=("bce", "orm"), labels=("given",), zetas=(0.0, 16.0))) == [
        Cell("bce", None, "llama", "given"),
        Cell("orm", None, "llama", "given"),
    ]


def test_names_of_trials_are_distinct_and_good_for_files():
    config = StudyConfig(
        losses=("rank", "rank-theory", "rank-first-error", "bce"),
        labels=("given", "first-error", "flip:0.1", "flip:0.01", "flip:0.10"),
        models=("a/b", "a--b", "a:b", "ab", "a_b", "a", "a/given", "/x/a b", "../x", ".", "c:\\m", "a%2Fb", "ä"),
        zetas=(0.0, 0.5, 5.0, 1e-7, 40.0),
        learning_rates=(1e-3, 1e-5, 0.1, 1.0, 1.0000001e-3),
        seeds=(0, 1, 10),
    )
    trials = [
        Trial(cell, rate, seed) for cell in cells(config) for rate in config.learning_rates for seed in config.seeds
    ]
    combined = StudyConfig(**COMBINED)
    trials += [
        replace(trial, seed=seed)
        for cell in cells(combined)
        for trial in tuning_trials(combined, cell)
        for seed in (0, 1)
    ]
    trials += [replace(trial, compare_weight=weight) for trial in trials[-1:] for weight in (1e-7, 3.0, 30.0)]
    trials = list(dict.fromkeys(trials))  # those of bce are in both
    names = [trial.name for trial in trials]
    assert len({name.casefold() for name in names}) == len(trials)
    assert all(name.isascii() and not set(name) & set('/\\:*?"<>| ') for name in names)
    assert all(name not in (".", "..") and len(name) < 200 for name in names)
    assert Trial(Cell("rank", 4.0, "llama", "flip:0.2"), 1e-3, 2).name == "rank-zeta4_llama_flip0.2_lr0.001_seed2"
    name = Trial(Cell("bce+sibling", None, "llama", "given"), 1e-3, 2, 3.0).name
    assert name == "bce+sibling_llama_given_lr0.001_weight3_seed2"


BAD = [
    ({"losses": ()}, "losses: none given; name at least one, each once"),
    ({"seeds": (0, 0)}, "seeds: 0, 0 given; name at least one, each once"),
    ({"labels": ("given", "given")}, "labels: given, given given"),
    ({"baseline": "mse", "losses": ("rank", "bce")}, "baseline mse: is not among the losses rank, bce"),
    ({"data": ("a.jsonl",), "test": ("b.jsonl",)}, "data, tuning, test: pass all three"),
    ({"n": 0}, "n: 0 was given; it must be at least 1"),
    ({"workers": -1}, "workers: -1 was given; it must be at least 0"),
    ({"learning_rates": (1e-3, 0.0)}, "learning_rates: 0.001, 0.0 given; each must be a finite number above 0"),
    ({"learning_rates": (float("nan"),)}, "learning_rates: nan given"),
    ({"zetas": (0.0, float("inf"))}, "zetas: 4.0, 0.0, inf given; each must be a finite number of at least 0"),
    ({"zeta": -1.0}, "zetas: -1.0, 0.0, 16.0 given"),
    ({"seeds": (0, -1)}, "seeds: 0, -1 given; each must be a finite number of at least 0"),
    (
        {"losses": ("bce", "bce+sibling", "mse+listwise")},
        "losses bce+sibling, mse+listwise: 2 rates times 2 weights are 4 trials to choose from, but other losses",
    ),
    (COMBINED | {"compare_weights": (1.0,)}, "2 rates times 1 weights are 2 trials to choose from, but other losses"),
    (COMBINED | {"compare_learning_rates": (1e-3, 1e-3)}, "compare_learning_rates: 0.001, 0.001 given; name each once"),
    ({"compare_weights": ()}, "compare_weights: none given; name at least one, each once"),
    ({"compare_weights": (1.0, 0.0)}, "compare_weights: 1.0, 0.0 given; each must be a finite number above 0"),
    ({"compare_learning_rates": (-1.0,)}, "compare_learning_rates: -1.0 given; each must be a finite number above 0"),
    (
        {"noise": (0.5, 0.6)},
        "noise: (0.5, 0.6) was given; it must be auto, or two rates of at least 0 with a sum below 1",
    ),
    ({"temperature": 0.0}, "temperature: 0.0 was given; it must be a finite number above 0"),
    ({"labels": ("monte-carlo",), "data": ("a",), "tuning": ("b",), "test": ("c",)}, "only in the arithmetic world"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_options_that_cannot_be(options, message):
    with pytest.raises(PQMError) as found:
        StudyConfig(**options)
    assert message in str(found.value)
