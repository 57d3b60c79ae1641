"""Each way to score gives the scores that transformers gives, from the batches and the operations that it says."""

import dataclasses

import numpy as np
import pytest
import torch
from pqm_benchmarks.score.check import Expected
from pqm_benchmarks.score.count import count
from pqm_benchmarks.score.ways.ladder import WAYS
from pqm_benchmarks.score.ways.padded import PaddedBatch, padded_excess, padded_rows
from pqm_benchmarks.score.ways.way import score
from pqm_benchmarks.shared.shapes import ALL_SHAPES, Shape
from pqm_benchmarks.shared.workload import make_workload
from pqm_benchmarks.train.ways.models import random_model
from pqm_benchmarks.train.ways.ours import HEAD
from pqm_benchmarks.train.ways.trl import padding_at_scale
from pqm_benchmarks.work.flops import RowCounts, scoring_flops
from pqm_benchmarks.work.model_flops import count_model_flops
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForTokenClassification

from pqm_fast.data.encode import Encoded
from pqm_fast.data.pack import PackedBatch
from pqm_fast.data.trajectory import Trajectory
from pqm_fast.errors import PQMError
from pqm_fast.scoring.scorer import Scorer

CPU = torch.device("cpu")
CONFIGS = {
    "grouped heads, tied": Shape("", "qwen2", 32, 2, 4, 2, 48, 61, True).config(),
    "own heads, untied": Shape("", "llama", 32, 2, 2, 2, 48, 61, False).config(),
}
CONFIG = CONFIGS["grouped heads, tied"]
EAGER = [name for name in WAYS if name != "compiled"]
PADDED, OURS = ("published", "padded"), [name for name in EAGER if name not in ("published", "padded")]
SETTINGS = [
    *(("published", {"batch": 4}), ("published", {"batch": 1}), ("padded", {"batch": 5}), ("padded", {"batch": 99})),
    # one batch, several, and a budget that cuts the tree of every question
    *((name, {"max_tokens": size}) for name in OURS for size in (4096, 120, 1)),
]


def make_questions(count=3, solutions=5, seed=0):
    """Solutions of a question share its tokens, the last two their first step too; some have a single step."""
    rng, questions = np.random.default_rng(seed), []
    for _ in range(count):
        start, own = rng.integers(2, 61, 5), []
        for i in range(solutions):
            ids = np.concatenate([start, rng.integers(2, 61, rng.integers(3, 40))]).astype(np.int32)
            rows = np.sort(rng.choice(np.arange(5, len(ids)), 1 if i == 0 else rng.integers(1, len(ids) - 5), False))
            if i == solutions - 1:
                shared = own[-1].step_tokens[0] + 1
                ids = np.concatenate([own[-1].input_ids[:shared], ids[5:]]).astype(np.int32)
                rows = np.array([shared - 1, len(ids) - 1])
            own.append(Trajectory(ids, rows.astype(np.int32), np.ones(len(rows), np.float32)))
        questions.append(own)
    return questions


def flat(questions):
    return [t for own in questions for t in own]


def alone(config, trajectories):
    """Scores through transformers' own model in float64, one solution at a time."""
    model = random_model(AutoModelForTokenClassification, config, CPU, torch.float64, "eager", **HEAD).eval()
    with torch.no_grad():
        return [model(torch.as_tensor(t.input_ids)[None].long()).logits[0, t.step_tokens, 0] for t in trajectories]


def scores_of(name, config, questions, setting, dtype=torch.float32):
    return score(WAYS[name], WAYS[name].build(config, CPU, dtype), questions, setting)


# ---- scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "name", "setting"), [(i, *setting) for i, setting in enumerate(SETTINGS)])
def test_scores_are_those_of_transformers(number, name, setting):
    config, questions = list(CONFIGS.values())[number % 2], make_questions()
    found, expected = scores_of(name, config, questions, setting), alone(config, flat(questions))
    assert len(found) == len(expected) == 15
    for own, exact in zip(found, expected, strict=True):
        assert own.dtype == np.float32
        np.testing.assert_allclose(own, exact.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_compiled_layers_give_the_same_scores():
    questions, setting = make_questions(), {"max_tokens": 120}
    found, expected = scores_of("compiled", CONFIG, questions, setting), alone(CONFIG, flat(questions))
    np.testing.assert_allclose(np.concatenate(found), torch.cat(expected).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_tokens", [4096, 120, 1])
@pytest.mark.parametrize("tree", [False, True])
def test_ours_is_what_scorer_does(tree, max_tokens):
    """The same batches in the same order, and the same bits."""
    name, questions = "tree_rows" if tree else "packed_rows", make_questions()
    way = WAYS[name]
    scoring = way.build(CONFIG, CPU, torch.float32)
    seen, scores = [], scoring.model.scores
    scoring.model.scores = lambda batch, plan: seen.append(batch) or scores(batch, plan)
    encoded = [
        (f"question {k}", Encoded(t.input_ids, t.step_tokens, 0)) for k, own in enumerate(questions) for t in own
    ]
    expected = Scorer(scoring.model, None, max_tokens, prefix_tree=tree).score_encoded(encoded)
    batches = list(way.batches(questions, {"max_tokens": max_tokens}))
    assert [b.members for b in batches] == [b.members for b in seen]
    found = score(way, scoring, questions, {"max_tokens": max_tokens})
    for own, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, exact, rtol=0, atol=0 if not tree else 1e-6)


def test_a_batch_is_made_while_the_one_before_is_computed():
    events = []

    class Recorder:
        def ahead(self, batch):
            events.append(f"ahead {batch.members}")
            return batch

        def __call__(self, batch):
            events.append(f"launched {batch.members}")
            return torch.zeros(1)

    def batches(questions, setting):
        for i in range(2):
            events.append(f"made ({i},)")
            yield PaddedBatch(torch.zeros(1, 1), torch.zeros(1), torch.tensor([0, 1]), (i,))

    score(dataclasses.replace(WAYS["padded"], batches=batches), Recorder(), [[None, None]], {})
    assert events == [f"{what} ({i},)" for i in range(2) for what in ("made", "ahead", "launched")]


# ---- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "setting"), [*SETTINGS, ("compiled", {"max_tokens": 256})])
def test_every_solution_is_scored_once(name, setting):
    questions = make_questions()
    batches = list(WAYS[name].batches(questions, setting))
    assert sorted(m for b in batches for m in b.members) == list(range(15))
    if name in PADDED:
        assert max(len(b.members) for b in batches) <= setting["batch"]
    else:
        longest = max(len(t.input_ids) for t in flat(questions))
        assert max(b.num_tokens for b in batches) <= max(setting["max_tokens"], longest)
    if name == "compiled":
        assert {len(b.input_ids) for b in batches} == {256}


def test_published_takes_them_as_they_come_and_the_other_by_length():
    questions = make_questions()
    lengths = np.array([len(t.input_ids) for t in flat(questions)])
    published, padded = (list(WAYS[name].batches(questions, {"batch": 4})) for name in PADDED)
    assert [b.members for b in published] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14)]
    order = [m for b in padded for m in b.members]
    assert (np.diff(lengths[order]) <= 0).all()
    for batch in (*published, *padded):
        assert batch.input_ids.shape == (len(batch.members), lengths[list(batch.members)].max())


def test_excess_is_padding_over_that_of_a_whole_data_set():
    questions = make_questions()
    shapes = [b.input_ids.shape for b in WAYS["padded"].batches(questions, {"batch": 4})]
    padding = sum(a * b for a, b in shapes) / sum(len(t.input_ids) for t in flat(questions))
    assert padded_excess(questions, {"batch": 4}) == pytest.approx(padding / padding_at_scale(4))
    assert WAYS["published"].excess(questions, {"batch": 4}) == 1


# ---- operations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logits", [False, True])
def test_padding_is_counted(logits):
    batches = list(WAYS["published"].batches(make_questions(), {"batch": 4}))
    tokens = pairs = 0
    for batch in batches:
        for row in batch.input_ids.tolist():
            for i in range(len(row)):
                tokens, pairs = tokens + 1, pairs + i + 1
    assert padded_rows(logits, batches) == RowCounts(tokens, pairs, tokens, tokens, logits=logits)


@pytest.mark.parametrize("name", OURS)
def test_our_pairs_are_those_of_the_rule(name):
    batches = list(WAYS[name].batches(make_questions(), {"max_tokens": 120}))
    tokens = pairs = rows = 0
    for batch in batches:
        for queries, keys in zip(batch.lengths, batch.path_lengths, strict=True):
            tokens, pairs = tokens + queries, pairs + sum(range(keys - queries + 1, keys + 1))
        rows += len(set(batch.step_tokens.tolist()))
    last = rows if name.endswith("rows") else tokens
    assert WAYS[name].rows(batches) == RowCounts(tokens, pairs, last, sum(b.num_steps for b in batches))


def counted(compute):
    """FLOPs of a computation in which attention is two plain products, the full square."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        compute()
    return counter.get_total_flops()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
@pytest.mark.parametrize("name", EAGER)
def test_scoring_has_the_flops_of_the_formula(name, config):
    """SDPA's plain products compute every pair of a query and a key in the padded batch of a group of sequences."""
    questions = [make_questions()[0][-2:] if "tree" in name else make_questions()[0][:1]]
    way = WAYS[name]
    scoring = way.build(config, CPU, torch.float32)
    [batch] = way.batches(questions, {"batch": 1, "max_tokens": 4096})
    rows, ready = way.rows([batch]), scoring.ahead(batch)
    pairs = rows.tokens**2
    if isinstance(batch, PackedBatch):
        assert len(batch.lengths) < 3  # no two in a group
        pairs = sum(q * k for q, k in zip(batch.lengths, batch.path_lengths, strict=True))
    squares = dataclasses.replace(rows, pairs=pairs)
    expected = scoring_flops(squares, count_model_flops(config))
    # rotary angles are a product in some versions of transformers, which the formula leaves out
    rotary = random_model(AutoModelForTokenClassification, config, CPU, torch.float32, "eager", **HEAD).model.rotary_emb
    angles = counted(lambda: rotary(torch.zeros(1, rows.tokens, 32), torch.arange(rows.tokens)[None]))
    assert counted(lambda: scoring(ready)) - angles == sum(expected.values())
    assert all(flops > 0 for flops in expected.values())


@pytest.fixture
def shallow(monkeypatch):
    """Models with few layers, which are counted sooner."""
    for name in ("Qwen2.5-0.5B", "deepseek-math-7b"):
        monkeypatch.setitem(ALL_SHAPES, name, dataclasses.replace(ALL_SHAPES[name], num_hidden_layers=3))


@pytest.mark.usefixtures("shallow")
def test_counts_are_those_of_the_weights():
    """2 FLOPs for each weight of a matrix and each row, written out from the sizes."""
    questions = make_workload(1, 0, solutions=30)
    shapes = {name: ALL_SHAPES[name] for name in ("Qwen2.5-0.5B", "deepseek-math-7b")}
    found = count(questions, list(WAYS), list(shapes))
    assert list(found["ways"]) == EAGER
    assert found["workload"]["trajectories"] == 30
    for shape, sizes in shapes.items():
        width, wide, kv = sizes.hidden_size, sizes.intermediate_size, sizes.num_key_value_heads * sizes.head_dim
        at_rows, depth = width * width + 3 * width * wide, sizes.num_hidden_layers
        for name, way in found["ways"].items():
            own = way["layout"]
            assert own == dataclasses.asdict(WAYS[name].rows(list(WAYS[name].batches(questions, WAYS[name].usual))))
            layer = at_rows + width * width + 2 * width * kv
            flops = 2 * own["tokens"] * (depth * layer - at_rows) + 2 * own["last_tokens"] * at_rows
            flops += 4 * width * depth * own["pairs"] + 2 * width * own["scored"]
            flops += 2 * own["tokens"] * width * sizes.vocab_size if name == "published" else 0
            assert way["flops_per_solution"][shape] == pytest.approx(flops / 30, rel=1e-12)


@pytest.mark.usefixtures("shallow")
def test_every_saving_saves():
    shapes = ["Qwen2.5-0.5B"]
    ways = count(make_workload(3, 0, solutions=30), EAGER, shapes)["ways"]
    for shape in shapes:
        flops = {name: ways[name]["flops_per_solution"][shape] for name in EAGER}
        ladder = [flops[name] for name in ("published", *OURS)]
        assert ladder == sorted(ladder, reverse=True)
        assert len(set(ladder)) == len(ladder)
        assert flops["padded"] > flops["packed"]


# ---- the check ------------------------------------------------------------------------------------------------------


def test_right_scores_are_held_and_wrong_ones_refused():
    questions = make_questions()
    expected = Expected.of(CONFIG, questions, CPU, torch.float32)
    assert expected.sample == list(range(15))
    exact = alone(CONFIG, flat(questions))
    for own, known in zip(expected.exact, exact, strict=True):
        np.testing.assert_allclose(own, known.numpy(), rtol=1e-6, atol=1e-7)
    assert 0 < expected.error < 1e-6
    right = scores_of("tree_rows", CONFIG, questions, {"max_tokens": 120})
    assert 0 < expected.check(right) < 1e-6
    swapped = [right[1], right[0], *right[2:]]
    for wrong in (swapped, [own + 1e-3 for own in right], [own * np.nan for own in right], [own[:1] for own in right]):
        with pytest.raises(PQMError, match="its scores have an error of"):
            expected.check(wrong)


def test_solutions_beside_the_sample_are_held_against_the_first_way():
    questions = make_questions(count=10)
    expected = Expected.of(CONFIG, questions, CPU, torch.float32)
    assert len(expected.sample) == 32
    right = scores_of("packed", CONFIG, questions, {"max_tokens": 4096})
    expected.check(right)
    other = next(i for i in range(50) if i not in expected.sample)
    with pytest.raises(PQMError, match=r"differ by .* from those of the first way"):
        expected.check([own + (i == other) for i, own in enumerate(right)])


MARKS = {"cpu": [pytest.mark.slow], "cuda": [pytest.mark.gpu]}
PLACES = [
    pytest.param(name, device, marks=MARKS[device] if device == "cuda" or name == "compiled" else [])
    for name in WAYS
    for device in ("cpu", "cuda")
]


@pytest.mark.parametrize(("name", "device"), PLACES)
def test_every_way_is_right_in_bfloat16(name, device):
    """By the measure that it is held to before it is timed."""
    config, device = Shape("", "qwen2", 128, 2, 4, 2, 256, 61, True).config(), torch.device(device)
    questions = make_questions(count=8)
    expected = Expected.of(config, questions, device, torch.bfloat16)
    assert 1e-4 < expected.error < 3e-2
    way = WAYS[name]
    setting = {"batch": 4, "max_tokens": 512}
    error = expected.check(score(way, way.build(config, device, torch.bfloat16), questions, setting))
    assert error > 1e-4  # it is in bfloat16
