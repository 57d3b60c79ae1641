"""The counted operations against counts of real computations, and the workload against its description."""

import dataclasses
import itertools
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from pqm_benchmarks.__main__ import main
from pqm_benchmarks.shared import workload
from pqm_benchmarks.shared.prefix_tree import count_prefixes
from pqm_benchmarks.shared.shapes import SHAPES
from pqm_benchmarks.shared.workload import make_workload, published_batches
from pqm_benchmarks.work import row_counts
from pqm_benchmarks.work.flops import PARTS, RowCounts, training_flops
from pqm_benchmarks.work.model_flops import count_model_flops
from pqm_benchmarks.work.report import table
from pqm_benchmarks.work.row_counts import WAYS, attention_work, count_rows
from pqm_benchmarks.work.run import WorkBench, count
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from pqm_fast.data.pack import pack, pack_trees
from pqm_fast.data.trajectory import Trajectory
from pqm_fast.errors import PQMError
from pqm_fast.model.step_q_model import StepQModel

ROOT = Path(__file__).resolve().parents[2]


def trajectory(ids, steps):
    return Trajectory(np.array(ids, np.int32), np.array(steps, np.int32), np.ones(len(steps), np.float32))


def distinct_prefixes(trajectories):
    return {t.input_ids[: n + 1].tobytes() for t in trajectories for n in range(len(t.input_ids))}


# ---- the workload ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("questions", "seed", "tree_ratio"), [(1, 0, 1.6), (3, 1, 1.6), (12, 2, 1.6), (12, 2, 2.0)])
def test_tree_ratio_is_the_one_asked_for(questions, seed, tree_ratio):
    groups = make_workload(questions, seed, tree_ratio)
    assert [len(group) for group in groups] == [22] * questions
    total = sum(len(t.input_ids) for group in groups for t in group)
    unique = sum(len(distinct_prefixes(group)) for group in groups)
    assert total / unique == pytest.approx(tree_ratio, abs=0.02)


@pytest.mark.parametrize("vocabulary", [32_000, 30])
def test_solutions_share_the_question_and_whole_steps_with_their_labels(vocabulary):
    (group,) = make_workload(1, 3, vocabulary=vocabulary)
    shared_steps = 0
    for t in group:
        assert t.input_ids.dtype == t.step_tokens.dtype == np.int32
        assert t.labels.dtype == np.float32
        assert t.input_ids.max() < vocabulary
        assert (np.flatnonzero(t.input_ids == workload.STEP_ID) == t.step_tokens).all()
        assert t.step_tokens[-1] == len(t.input_ids) - 1
        assert (np.diff(t.labels) <= 0).all()
    for a, b in pairwise(group):
        size = min(len(a.input_ids), len(b.input_ids))
        common = int((a.input_ids[:size] == b.input_ids[:size]).argmin())
        assert 0 < common < size  # no solution is the beginning of another
        steps = int((a.step_tokens < common).sum())
        assert steps == 0 or a.step_tokens[steps - 1] == common - 1  # they part where a step ends
        assert (a.labels[:steps] == b.labels[:steps]).all()
        shared_steps += steps
    assert shared_steps > 0


def test_lengths_are_those_of_math_shepherd():
    """392,777 trajectories up to 512 tokens, 49,233 up to 1024, 2,543 longer."""
    trajectories = [t for group in make_workload(200, 1) for t in group]
    lengths = np.array([len(t.input_ids) for t in trajectories])
    steps = sum(len(t.step_tokens) for t in trajectories)
    assert lengths.max() <= 2048
    assert np.mean(lengths) == pytest.approx(316, rel=0.02)
    assert np.mean(lengths <= 512) == pytest.approx(392_777 / 444_553, abs=0.01)
    assert np.mean(lengths > 1024) == pytest.approx(2_543 / 444_553, abs=0.002)
    assert 32 <= lengths.sum() / steps <= 40


def test_the_same_seed_gives_the_same_workload():
    one, same, other = make_workload(2, 5), make_workload(2, 5), make_workload(2, 6)
    for a, b in zip(one, same, strict=True):
        for t, u in zip(a, b, strict=True):
            assert all(
                np.array_equal(getattr(t, name), getattr(u, name), equal_nan=True) for name in Trajectory.__slots__
            )
    assert [len(t.input_ids) for t in one[0]] != [len(t.input_ids) for t in other[0]]


@pytest.mark.parametrize("tree_ratio", [1.0, 9.0, float("nan")])
def test_a_tree_ratio_out_of_reach_is_refused(tree_ratio):
    with pytest.raises(PQMError, match=r"2 questions can have one between 1\.\d\d, .* and \d\.\d\d, found"):
        make_workload(2, 0, tree_ratio)


def test_published_batches():
    lengths = np.random.default_rng(0).integers(1, 2049, 1000)
    lengths[:4] = 512, 513, 1024, 1025
    batches = published_batches(lengths, 0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1000))
    for low, high, size in ((0, 512, 64), (512, 1024, 24), (1024, 2048, 8)):
        own = [b for b in batches if low < lengths[b].min() and lengths[b].max() <= high]
        assert sum(map(len, own)) == ((lengths > low) & (lengths <= high)).sum()
        assert all(len(b) == size for b in own[:-1])
        assert len(own[-1]) <= size


# ---- rows and pairs -------------------------------------------------------------------------------------------------


def test_rows_and_pairs_by_hand():
    """A question of two tokens; the second solution shares the first one's first step, the third nothing more."""
    group = [
        trajectory([5, 6, 7, 1, 8, 1], [3, 5]),
        trajectory([5, 6, 7, 1, 9, 9, 1], [3, 6]),
        trajectory([5, 6, 3, 1], [3]),
    ]
    # 1..6, then 5 + 6 + 7, then 3 + 4; steps end at four prefixes
    assert count_prefixes(group) == (6 + 3 + 2, 21 + 18 + 7, 4)
    assert count_rows([group, group[:1]], 0) == {
        "reference": RowCounts(4 * 7, 80, 4 * 7, 4 * 7, logits=True, recomputes=True),
        "packed": RowCounts(23, 21 + 28 + 10 + 21, 23, 7),
        "tree": RowCounts(11 + 6, 46 + 21, 17, 7),
        "tree_step_rows": RowCounts(17, 67, 4 + 2, 7),
    }


def test_prefix_tree_counts_distinct_prefixes():
    rng = np.random.default_rng(0)
    for _ in range(50):
        group = []
        for _ in range(rng.integers(1, 9)):
            length = int(rng.integers(1, 7))
            steps = np.flatnonzero(rng.random(length) < 0.4)
            group.append(trajectory(rng.integers(0, 2, length), steps))
        prefixes = distinct_prefixes(group)
        read = {t.input_ids[: row + 1].tobytes() for t in group for row in t.step_tokens}
        assert count_prefixes(group) == (len(prefixes), sum(len(prefix) // 4 for prefix in prefixes), len(read))


def test_the_packer_lays_out_the_rows_and_pairs_that_are_counted():
    for group in make_workload(2, 7):
        batch = pack_trees([list(enumerate(group))])
        tokens, pairs, rows = count_prefixes(group)
        assert (batch.num_tokens, len(batch.step_tokens.unique())) == (tokens, rows)
        assert int((batch.position_ids + 1).sum()) == pairs
        assert batch.num_steps == sum(len(t.step_tokens) for t in group)
        attention = attention_work([group])["tree"]
        assert (attention.sequences, attention.pairs) == (len(batch.lengths), pairs)
        assert attention.gathered == len(batch.paths)


def test_attention_in_tiles_by_the_tile(monkeypatch):
    """Each tile that holds a pair is computed whole; a tile begins anew with each sequence."""
    monkeypatch.setattr(row_counts, "TILE", (4, 2))
    rng = np.random.default_rng(1)
    group = [trajectory(rng.integers(0, 2, rng.integers(1, 20)), []) for _ in range(12)]
    batch = pack_trees([list(enumerate(group))])
    for way, lengths in (("packed", [(len(t.input_ids),) * 2 for t in group]), ("tree", None)):
        tiles, pairs = set(), 0
        for number, (q, k) in enumerate(lengths or zip(batch.lengths, batch.path_lengths, strict=True)):
            for i, j in itertools.product(range(q), range(k)):
                if j <= i + k - q:
                    pairs += 1
                    tiles.add((number, i // 4, j // 2))
        found = attention_work([group])[way]
        assert (found.pairs, found.computed_pairs) == (pairs, 4 * 2 * len(tiles))


def test_attention_of_the_design():
    """60 questions at tree ratio 1.60; a sequence for each run of tokens without a branch would compute 1.90 times the
    pairs and gather 1.97 times the tokens."""
    groups = make_workload(60, 0, 1.6)
    ways = attention_work(groups)
    tree, packed = ways["tree"], ways["packed"]
    distinct = sum(count_prefixes(group)[0] for group in groups)
    assert tree.sequences == packed.sequences == sum(map(len, groups)) == 1320
    assert tree.computed_pairs / tree.pairs == pytest.approx(1.761, abs=5e-4)
    assert packed.computed_pairs / packed.pairs == pytest.approx(1.688, abs=5e-4)
    assert packed.computed_pairs / tree.pairs == pytest.approx(1.997, abs=5e-4)
    assert tree.gathered / distinct == pytest.approx(1.601, abs=5e-4)
    assert packed.gathered == 0


# ---- products, against real computations on the CPU -----------------------------------------------------------------


def counted(compute) -> int:
    """FLOPs of a computation in which attention is two plain products, the full square."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


def angles(backbone, width: int) -> int:
    """FLOPs of rotary angles, a product in some versions of transformers, which the formula leaves out."""
    rows = torch.zeros(1, width, backbone.config.hidden_size)
    return counted(lambda: backbone.rotary_emb(rows, torch.arange(width)[None]))


# SDPA's plain products compute every pair of a query and a key in the padded batch of a group of sequences
@pytest.mark.parametrize(
    ("way", "architecture"),
    [("packed", "qwen2"), ("tree", "qwen2"), ("tree_step_rows", "qwen2"), ("tree_step_rows", "llama")],
)
def test_a_training_step_has_the_flops_of_the_formula(way, architecture, tmp_path):
    folder = tiny.model_folder(tmp_path, architecture)
    model = StepQModel.from_pretrained(str(folder), step_rows_only=way == "tree_step_rows")
    group = [trajectory([5, 6, 7, 1, 8, 1], [3, 5]), trajectory([5, 6, 7, 1, 9, 9, 1], [3, 6])]
    if way == "packed":
        del group[1]
    batch = pack_trees([list(enumerate(group))]) if way != "packed" else pack(list(enumerate(group)))
    rows = count_rows([group], 0)[way]
    # padded to 6 x 6 alone; in the tree by 6 queries with 6 keys, and 3 with 7
    squares = dataclasses.replace(rows, pairs=36 if way == "packed" else 36 + 21)
    expected = training_flops(squares, count_model_flops(tiny.config(architecture)))
    # in plain PyTorch the head is a product with a vector, which the counter does not know
    assert expected.pop("heads") == 6 * 32 * sum(len(t.step_tokens) for t in group)
    found = counted(lambda: model(batch, loss="rank", zeta=4.0).loss.backward())
    assert found - angles(model.backbone, rows.tokens) == sum(expected.values())
    assert expected["layers"] > 0
    assert expected["attention"] > 0
    assert expected["recomputation"] == 0


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_the_published_computation_has_the_flops_of_the_formula(architecture):
    config = tiny.config(architecture)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    head = torch.nn.Linear(config.hidden_size, 1)
    model.train()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": True})
    sequences, width = 3, 17
    ids = torch.randint(3, 90, (sequences, width))

    def compute():
        output = model(input_ids=ids, use_cache=False, output_hidden_states=True)
        head(output.hidden_states[-1])[:, [3, 9]].sum().backward()

    tokens, squares = sequences * width, sequences * width**2
    rows = RowCounts(tokens, squares, tokens, tokens, logits=True, recomputes=True)
    expected = training_flops(rows, count_model_flops(config))
    assert all(expected[part] > 0 for part in PARTS)
    assert counted(compute) - angles(model.model, width) == sum(expected.values())
    logits = counted(lambda: model.lm_head(torch.zeros(tokens, config.hidden_size)))
    assert expected["heads"] == logits + 6 * tokens * config.hidden_size


# ---- the figures ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results():
    """As in the documentation, for fewer questions and models."""
    return count(WorkBench(questions=20, shapes=("Qwen2.5-0.5B", "deepseek-math-7b")))


def test_shapes_have_the_parameters_of_the_published_models(results):
    published = {
        "Qwen2.5-0.5B": 494_032_768,
        "deepseek-math-7b": 6_910_365_696,
    }
    assert {name: shape["parameters"] for name, shape in results["shapes"].items()} == published


def test_counts_are_those_of_the_weights(results):
    """6 FLOPs for each weight of a matrix and each row, written out from the sizes."""
    trajectories, ways = results["workload"]["trajectories"], results["workload"]["layouts"]
    for name in results["shapes"]:
        shape = SHAPES[name]
        width, wide, kv = shape.hidden_size, shape.intermediate_size, shape.num_key_value_heads * shape.head_dim
        at_rows = width * width + 3 * width * wide
        layer = at_rows + width * width + 2 * width * kv
        depth = shape.num_hidden_layers
        for way, parts in results["shapes"][name]["parts"].items():
            own = ways[way]
            pairs = depth * own["pairs"]
            expected = {
                "layers": 6 * (own["tokens"] * (depth - 1) * layer + own["tokens"] * (layer - at_rows))
                + 6 * own["last_tokens"] * at_rows,
                "attention": 12 * width * pairs,
                "heads": 6 * own["scored"] * width,
                "recomputation": 0,
            }  # fmt: skip
            if way == "reference":
                expected["heads"] += 2 * own["tokens"] * width * shape.vocab_size
                expected["recomputation"] = 2 * own["tokens"] * depth * layer + 4 * width * pairs
            assert parts == pytest.approx({part: flops / trajectories for part, flops in expected.items()}, rel=1e-12)
        gathered = results["workload"]["attention"]["tree"]["gathered"]
        in_bytes = 2 * 2 * kv * depth * gathered / trajectories  # keys and values of 2 bytes
        assert results["shapes"][name]["gathered_bytes_per_trajectory"] == pytest.approx(in_bytes)


def test_every_saving_saves(results):
    assert results["workload"]["tree_ratio"] == pytest.approx(1.6, abs=0.02)
    for shape in results["shapes"].values():
        whole = [shape["flops_per_trajectory"][way] for way in WAYS]
        assert whole == sorted(whole, reverse=True)
        assert len(set(whole)) == len(WAYS)
        assert whole == [pytest.approx(sum(shape["parts"][way].values())) for way in WAYS]
        tokens = results["workload"]["layouts"]["tree"]["tokens"] / results["workload"]["trajectories"]
        assert shape["floor"] == pytest.approx(6 * shape["non_embedding"] * tokens)


def test_the_readme_says_what_is_stored():
    stored = json.loads((ROOT / "benchmarks" / "results" / "work-counted.json").read_text())
    assert f"```\n{table(stored)}\n```" in (ROOT / "docs" / "explanation" / "performance.md").read_text()
    flops = [shape["flops_per_trajectory"] for shape in stored["shapes"].values()]
    times_less = [each["reference"] / each["tree_step_rows"] for each in flops]
    assert f"{min(times_less):.1f} to {max(times_less):.1f} times fewer" in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_stored_counts_are_those_of_today():
    stored = json.loads((ROOT / "benchmarks" / "results" / "work-counted.json").read_text())["shapes"]
    assert count(WorkBench(shapes=("Qwen2.5-0.5B",)))["shapes"]["Qwen2.5-0.5B"] == stored["Qwen2.5-0.5B"]


def test_the_command(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(SHAPES, "Qwen2.5-0.5B", dataclasses.replace(SHAPES["Qwen2.5-0.5B"], num_hidden_layers=2))
    arguments = ["work", "--questions", "2", "--seed", "1", "--shapes", "Qwen2.5-0.5B"]
    assert main([*arguments, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["config"]["questions"] == 2
    assert results["workload"]["trajectories"] == 44
    assert list(results["shapes"]) == ["Qwen2.5-0.5B"]
    shape = results["shapes"]["Qwen2.5-0.5B"]
    assert list(shape["flops_per_trajectory"]) == ["reference", "packed", "tree", "tree_step_rows"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "work_counted.png").read_bytes()[:4] == b"\x89PNG"
    out = capsys.readouterr().out
    assert out == table(results) + "\n"
    for way, name in WAYS.items():
        (line,) = [line for line in out.split("GFLOP")[1].splitlines() if line.startswith(f"{name}  ")]
        assert f" {shape['flops_per_trajectory'][way] / 1e9:,.1f} " in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shapes"], "shapes: give at least one of Qwen2.5-0.5B, "),
        (["--questions", "0"], "questions must be positive and seed not negative, found 0 and 0"),
        (["--seed", "-1"], "questions must be positive and seed not negative, found 200 and -1"),
        (["--tree-ratio", "1", "--questions", "2"], "tree ratio: 2 questions can have one between"),
    ],
)
def test_bad_options(options, message, capsys):
    assert main(["work", *options]) == 1
    assert message in capsys.readouterr().err
