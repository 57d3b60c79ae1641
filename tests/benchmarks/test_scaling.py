"""The simulation of many ranks: the goal for idle time with the trainer's own planner, and its parts against their
definitions."""

import json
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from pqm_benchmarks.__main__ import main
from pqm_benchmarks.scaling import balance, network, report
from pqm_benchmarks.scaling.balance import steady_batches
from pqm_benchmarks.scaling.cases import BUDGET, GOAL, MANY, SHAPE
from pqm_benchmarks.scaling.epoch import Workload, micro_batches
from pqm_benchmarks.scaling.idle import Timed, dealt, epoch_time, least_idle, steady_idle, time_of_rounds
from pqm_benchmarks.scaling.network import Collectives, collectives, ring_seconds, round_seconds, simulate_round
from pqm_benchmarks.scaling.rates import Rates, layer_parameters, layer_seconds, root_parameters
from pqm_benchmarks.scaling.report import one, tables
from pqm_benchmarks.shared.shapes import ALL_SHAPES, LARGE_SHAPES, SHAPES
from pqm_benchmarks.shared.workload import make_workload

ROOT = Path(__file__).resolve().parents[2]
RATES = Rates()
NO_HOPS = Rates(nvlink_hop=0.0, network_hop=0.0)


@pytest.fixture(scope="module")
def workload():
    return Workload.of(make_workload(1500, 1))


@pytest.fixture(scope="module")
def stored():
    return json.loads((ROOT / "benchmarks" / "results" / "scaling-simulation.json").read_text())


# ---- balance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["plain", "tree"])
def test_ranks_wait_less_than_the_goal(workload, layout):
    batches = steady_batches(workload, layout, BUDGET, 1, 2 * MANY)
    timed = Timed.of(batches, ALL_SHAPES[SHAPE], RATES, BUDGET)
    assert all(0 < steady_idle(timed, ranks, 2) < GOAL for ranks in (8, 64, 256, MANY))
    heaviest = Timed.of(replace(batches, pairs=batches.heaviest), ALL_SHAPES[SHAPE], RATES, BUDGET)
    assert 0 <= least_idle(timed, heaviest, MANY) < steady_idle(timed, MANY, 1)


@pytest.mark.parametrize(
    ("layout", "ranks", "accumulation"),
    [("plain", 1, 4), ("tree", 8, 4), ("halves", 64, 1), ("tree", MANY, 1)],
)
def test_an_epoch_deals_every_trajectory_once(workload, layout, ranks, accumulation):
    batches = micro_batches(workload.units(layout, BUDGET), BUDGET, 1)
    timed = Timed.of(batches, ALL_SHAPES[SHAPE], RATES, BUDGET)
    steps = dealt(timed.work, ranks, accumulation)
    assert all(len(numbers) == ranks for rounds in steps for numbers in rounds)
    size = ranks * accumulation
    for start, rounds in enumerate(steps):  # dealing moves nothing from one optimizer step to another
        numbers = sorted(n for n in chain.from_iterable(rounds) if n >= 0)
        assert numbers == list(range(start * size, min((start + 1) * size, len(timed.work))))
    given = [batches.members[n] for rounds in steps for numbers in rounds for n in numbers if n >= 0]
    assert np.array_equal(np.sort(np.concatenate(given)), np.arange(len(workload.tokens)))


def test_tokens_of_micro_batches_are_those_of_the_units(workload):
    units = workload.units("tree", BUDGET)
    batches = micro_batches(units, BUDGET, 1, epochs=2)
    assert batches.tokens.sum() == 2 * units.sizes.sum()
    assert batches.pairs.sum() == pytest.approx(2 * units.pairs.sum())
    assert batches.tokens.max() <= BUDGET
    assert batches.heaviest.max() == np.add.reduceat(units.pairs, np.append(0, units.ends[:-1])).max()
    assert (batches.heaviest <= batches.pairs).all()
    assert workload.units("halves", BUDGET).sizes.max() <= BUDGET / 2


def test_idle_by_hand():
    seconds = np.array([3.0, 1.0, 4.0, 2.0, 5.0])
    steps = dealt(seconds, 2, 2)
    assert steps == [[[2, 0], [3, 1]], [[4, -1]]]
    assert time_of_rounds(seconds, chain.from_iterable(steps)) == (7.5, 11.0)
    timed = Timed(seconds, seconds)
    assert steady_idle(timed, 2, 2) == pytest.approx(1 - 5 / 6)  # 4 and 3, then 2 and 1
    assert least_idle(timed, Timed(seconds, np.array([1.0, 1.0, 3.5, 2.0, 5.0])), 2) == pytest.approx(1 - 5 / 5.5)
    epoch = epoch_time(timed, 2, 100)  # 3 and 1, 4 and 2, 5 alone
    assert asdict(epoch) == {
        "tokens": 100, "micro_batches": 5, "rounds": 3, "idle": pytest.approx(1 - 7.5 / 12), "seconds": 12.0,
    }  # fmt: skip


def test_padding_takes_the_time_of_tokens(workload):
    batches = micro_batches(workload.units("tree", BUDGET), BUDGET, 1)
    shape = ALL_SHAPES[SHAPE]
    padded, exact = (Timed.of(batches, shape, RATES, budget) for budget in (BUDGET, None))
    extra = 6 * 28 * layer_parameters(shape) * (BUDGET - batches.tokens) / RATES.matrix_flops
    np.testing.assert_allclose(padded.seconds - exact.seconds, extra, atol=1e-9)


# ---- computation and communication ----------------------------------------------------------------------------------


def test_parameters_are_those_of_the_published_models():
    published = {
        "Qwen2.5-0.5B": 494_032_768,
        "Qwen2.5-1.5B": 1_543_714_304,
        "Qwen2.5-7B": 7_615_616_512,
        "deepseek-math-7b": 6_910_365_696,
        "Qwen2.5-14B": 14_770_033_664,
        "Qwen2.5-32B": 32_763_876_352,
        "Qwen2.5-72B": 72_706_203_648,
    }
    for name, shape in (SHAPES | LARGE_SHAPES).items():
        head = 0 if shape.tie_word_embeddings else shape.vocab_size * shape.hidden_size
        layers = shape.num_hidden_layers * layer_parameters(shape)
        assert layers + root_parameters(shape) + head == published[name]


def test_a_layer_computes_6_operations_a_parameter_and_14_a_pair():
    shape = ALL_SHAPES[SHAPE]
    tokens = sum(layer_seconds(shape, 100.0, 0.0, RATES)) * RATES.matrix_flops
    assert tokens == pytest.approx(6 * layer_parameters(shape) * 100)
    pairs = sum(layer_seconds(shape, 0.0, 100.0, RATES)) * RATES.matrix_flops * RATES.attention_share
    assert pairs == pytest.approx(14 * shape.hidden_size * 100)


def test_a_ring_passes_all_parts_but_one():
    size, rate = 1e9, NO_HOPS.reached * NO_HOPS.network_bytes
    assert ring_seconds(size, 6, 1, NO_HOPS) == pytest.approx(sum([size / 6 / rate] * 5))
    nvlink = NO_HOPS.reached * NO_HOPS.nvlink_bytes
    assert ring_seconds(size, 8, 8, NO_HOPS) == pytest.approx(7 * size / 8 / nvlink)
    # 8 rings through 2 nodes, each through a card of its own
    assert ring_seconds(size, 16, 8, NO_HOPS) == pytest.approx(15 * (size / 8 / 16) / rate)
    assert ring_seconds(size, 1, 1, RATES) == 0
    assert ring_seconds(0, 24, 8, RATES) == pytest.approx(2 * RATES.network_hop + 21 * RATES.nvlink_hop)


def test_hybrid_sharding_sums_an_eighth_of_the_gradients_across_nodes():
    found = collectives(1000, 32, "hybrid", NO_HOPS)
    assert found.gather == ring_seconds(2000, 8, 8, NO_HOPS)
    assert found.scatter == ring_seconds(4000, 8, 8, NO_HOPS)
    assert found.reduce == pytest.approx(2 * 3 / 4 * 500 / (NO_HOPS.reached * NO_HOPS.network_bytes))
    assert collectives(1000, 8, "hybrid", RATES).reduce == 0


def test_rounds_by_hand():
    layer, root = Collectives(2, 4, 0), Collectives(1, 5, 0)
    # gathers end at 1, 3, 5; layers compute 3-6, 6-9; gather 9-11, 11-13; backward 11-17, 17-23; scatter 17-21, 23-27,
    # 27-32
    assert round_seconds(2, 3, 6, layer, root) == 32
    # sums across nodes 21-31, 31-41 and 41-42
    assert round_seconds(2, 3, 6, Collectives(2, 4, 10), Collectives(1, 5, 1)) == 42


@pytest.mark.parametrize("way", network.WAYS)
@pytest.mark.parametrize("tokens", [16, 4096, 65536])
def test_a_round_takes_as_long_as_its_longer_half_and_less_than_both(way, tokens):
    shape = ALL_SHAPES["Qwen2.5-1.5B"]
    found = simulate_round(shape, tokens, 300.0 * tokens, 64, way, RATES)
    both = found.compute + found.communication
    # the sums across nodes of hybrid sharding are a second link, which may run after everything else
    most = both + (found.communication if way == "hybrid" else 0)
    assert max(found.compute, found.communication) <= found.seconds <= most * (1 + 1e-12)
    assert 0 < found.exposed < 1
    layers, root = shape.num_hidden_layers * layer_parameters(shape), root_parameters(shape)
    if way != "hybrid":
        assert found.received_bytes == pytest.approx(63 / 64 * (2 * 2 * layers + 2 * root + 4 * (layers + root)))
        assert found.network_bytes == pytest.approx(found.received_bytes / (8 if way == "nodes" else 1))


# ---- what is stored and shown ---------------------------------------------------------------------------------------


def test_the_stored_network_is_what_the_code_gives(stored):
    assert stored["rates"] == asdict(RATES)
    pairs = stored["workload"]["plain"]["pairs_of_a_token"]
    for row, again in zip(stored["network"], network.network_rows(pairs, RATES), strict=True):
        assert row == pytest.approx(again)


def test_the_stored_idle_meets_the_goal(stored):
    assert stored["workload"]["plain"]["trajectories"] == 444_554
    for row in stored["idle"]:
        enough = 1 if row["layout"] == "plain" else 8 if row["shape"] == "Qwen2.5-0.5B" else 2
        if row["padded"] and row["accumulation"] >= enough and row["ranks"] <= MANY:
            assert row["idle"] < GOAL, row
    for row in stored["epoch"]:
        assert row["evened"]["rounds"] <= row["given"]["rounds"]


def test_the_documentation_shows_the_tables(stored):
    text = (ROOT / "docs" / "evidence" / "scaling-simulation.md").read_text(encoding="utf-8")
    for name, table in tables(stored).items():
        assert f"```\n{table}\n```" in text, name


def test_the_command(tmp_path, capsys, monkeypatch):
    few = {"RANKS": (8, 16), "ACCUMULATIONS": (1, 4), "MANY": 8}
    for module in (balance, network, report):
        for name, value in few.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    out = tmp_path / "scaling.json"
    assert main(["scaling", "--questions", "40", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    results = json.loads(out.read_text())
    assert text == "\n\n".join(tables(results).values()) + "\n"
    assert results["workload"]["plain"]["trajectories"] == 880
    assert {row["ranks"] for row in results["epoch"]} == {8, 16}
    assert (
        f"{report.percent(one(results['network'], shape=SHAPE, way='alone', ranks=8, tokens=BUDGET)['exposed'])}"
        in text
    )
    assert main(["scaling", "--results", str(out)]) == 0
    assert capsys.readouterr().out == text


def test_the_picture_of_a_stored_run(tmp_path):
    stored = ROOT / "benchmarks" / "results" / "scaling-simulation.json"
    assert main(["scaling", "--results", str(stored), "--picture", str(tmp_path)]) == 0
    assert (tmp_path / "scaling.png").read_bytes()[:4] == b"\x89PNG"


def test_a_file_that_holds_no_results(tmp_path, capsys):
    (tmp_path / "other.json").write_text("{}")
    assert main(["scaling", "--results", str(tmp_path / "other.json")]) == 1
    assert "is not a file of `python -m pqm_benchmarks scaling --out`" in capsys.readouterr().err
