"""Each way to train computes the loss and the gradient of its own definition, over the same trajectories."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from definitions import DEFINITIONS
from pqm_benchmarks.shared import devices, timing
from pqm_benchmarks.shared.attempts import fastest
from pqm_benchmarks.shared.shapes import Shape
from pqm_benchmarks.shared.workload import published_batches
from pqm_benchmarks.train.ways import openrlhf, ours, reference, steady, trl
from pqm_benchmarks.train.ways.ladder import WAYS
from pqm_benchmarks.train.ways.models import random_model, randomise
from pqm_benchmarks.train.ways.optimizers import MasterAdamW
from pqm_benchmarks.train.ways.way import LEARNING_RATE, ZETA, PassPlan, TrainingWay
from pqm_benchmarks.work.flops import RowCounts
from pqm_benchmarks.work.model_flops import count_model_flops
from tiny import relative_error
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from pqm_fast.data.trajectory import Trajectory

CPU = torch.device("cpu")
CONFIGS = {
    "grouped heads, tied": Shape("", "qwen2", 32, 2, 4, 2, 48, 61, True).config(),
    "own heads, untied": Shape("", "llama", 32, 2, 2, 2, 48, 61, False).config(),
}
DOUBLE = 1e-9  # norms of transformers are float32 in any model
PUBLISHED_EPSILON = 2e-5  # the published loss adds 1e-5 to denominators of 1 and more


def make_questions(count=3, solutions=4, longest=40, seed=0):
    """Solutions of a question share its tokens; the odd ones have one step, no wrong step, or none right."""
    rng, questions = np.random.default_rng(seed), []
    for _ in range(count):
        start = rng.integers(2, 61, 5)
        own = []
        for i in range(solutions):
            ids = np.concatenate([start, rng.integers(2, 61, rng.integers(3, longest))]).astype(np.int32)
            rows = np.sort(rng.choice(np.arange(5, len(ids)), 1 if i == 0 else rng.integers(1, len(ids) - 5), False))
            labels = rng.integers(0, 2, len(rows)) if i else np.array([len(questions) % 2])
            if i == solutions - 1:  # begins like the one before, its first step and that step's label included
                shared = own[-1].step_tokens[0] + 1
                ids = np.concatenate([own[-1].input_ids[:shared], ids[5:]]).astype(np.int32)
                rows = np.array([shared - 1, len(ids) - 1])
                labels = np.array([own[-1].labels[0], 1])
            own.append(Trajectory(ids, rows.astype(np.int32), labels.astype(np.float32)))
        questions.append(own)
    return questions


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def alone(model, trajectory):
    """What a model of transformers gives for one trajectory, without padding or mask."""
    ids = torch.as_tensor(trajectory.input_ids)[None].long()
    return model(input_ids=ids, output_hidden_states=True)


def gradients(loss, parameters):
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


def assert_same(step, plan, loss, parameters, tolerance=DOUBLE):
    """Loss and gradient of the first optimizer step of a plan, in float64."""
    found = step.backward(plan.steps[0])
    assert float(found) == pytest.approx(loss.item(), rel=tolerance)
    expected = gradients(loss, parameters)
    assert len(expected) == len(step.parameters)
    for parameter, gradient in zip(step.parameters, expected, strict=True):
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert relative_error(own, gradient) < 10 * tolerance or gradient.norm() < 1e-14


# ---- definitions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 3])
def test_reference(config, parts):
    questions = make_questions()
    questions[0][1] = Trajectory(  # of the bucket of longer ones: a batch of its own, which weighs as much as the other
        np.random.default_rng(3).integers(2, 61, 600).astype(np.int32),
        np.array([3, 599], np.int32),
        np.array([1, 0], np.float32),
    )
    step = reference.build(config, CPU, torch.float64, {})
    plan = reference.plan(questions, 1, {"parts": parts}, CPU)
    trajectories = [t for own in questions for t in own]
    batches = published_batches(np.array([len(t.input_ids) for t in trajectories]), 0)
    assert sorted(map(len, batches)) == [1, 11]
    assert len(plan.steps[0]) == 1 + parts
    model = random_model(AutoModelForCausalLM, config, CPU, torch.float64, "sdpa")
    head = nn.Linear(32, 1, dtype=torch.float64)
    randomise(head)

    def loss_of(t):
        scores = head(alone(model, t).hidden_states[-1][0, torch.as_tensor(t.step_tokens).long()]).squeeze(-1)
        return DEFINITIONS["rank"](scores, t.labels.tolist(), ZETA)

    loss = torch.stack([torch.stack([loss_of(trajectories[i]) for i in batch]).mean() for batch in batches]).mean()
    parameters = [*model.model.parameters(), *head.parameters()]
    assert_same(step, plan, loss, parameters, PUBLISHED_EPSILON)


@pytest.mark.parametrize("recompute", [False, True])
def test_trl(config, recompute):
    questions = make_questions()
    step = trl.build(config, CPU, torch.float64, {"recompute": recompute})
    plan = trl.plan(questions, 1, {"batch": 5, "recompute": recompute}, CPU)
    options = {"num_labels": 2, "classifier_dropout": 0.0}
    model = random_model(AutoModelForTokenClassification, config, CPU, torch.float64, "sdpa", **options)

    def terms_of(t):
        rows = torch.as_tensor(t.step_tokens).long()
        return F.cross_entropy(alone(model, t).logits[0, rows], torch.as_tensor(t.labels).long(), reduction="none")

    ordered = sorted((t for own in questions for t in own), key=lambda t: -len(t.input_ids))
    batches = [ordered[i : i + 5] for i in range(0, 12, 5)]
    loss = torch.stack([torch.cat([terms_of(t) for t in batch]).mean() for batch in batches]).mean()
    # transformers' own loss rounds its logits to float32
    assert_same(step, plan, loss, list(model.parameters()), 1e-6)


@pytest.mark.parametrize("recompute", [False, True])
def test_openrlhf(config, recompute):
    questions = make_questions()
    step = openrlhf.build(config, CPU, torch.float64, {"recompute": recompute})
    plan = openrlhf.plan(questions, 1, {"batch": 7, "recompute": recompute}, CPU)
    model = random_model(AutoModelForCausalLM, config, CPU, torch.float64, "sdpa")

    def terms_of(t):
        logits = alone(model, t).logits[0, torch.as_tensor(t.step_tokens).long()]
        wanted = [openrlhf.CORRECT if label else openrlhf.WRONG for label in t.labels]
        return F.cross_entropy(logits, torch.tensor(wanted), reduction="none")

    trajectories = [t for own in questions for t in own]
    order = np.random.default_rng(0).permutation(12)
    batches = [order[:7], order[7:]]
    loss = torch.stack([torch.cat([terms_of(trajectories[i]) for i in batch]).mean() for batch in batches]).mean()
    assert_same(step, plan, loss, list(model.parameters()))


@pytest.mark.parametrize("name", ["packed", "tree", "step_rows", "all"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_ours(config, name, micro_batches):
    """The gradient of the trainer has tests of its own; here it is that the step is put together as it should be."""
    switches = ours.Switches(tree=name != "packed", step_rows=name in ("step_rows", "all"), fused_update=name == "all")
    questions, setting = make_questions(), {"micro_batches": micro_batches, "recompute": 0.5}
    step = ours.build(switches, config, CPU, torch.float32, setting)
    plan = ours.plan(switches, questions, 1, setting, CPU)
    assert len(plan.steps[0]) == micro_batches
    model = random_model(
        AutoModelForTokenClassification, config, CPU, torch.float64, "sdpa", num_labels=1, classifier_dropout=0.0
    )

    def loss_of(t):
        scores = alone(model, t).logits[0, torch.as_tensor(t.step_tokens).long(), 0]
        return DEFINITIONS["rank"](scores, t.labels.tolist(), ZETA)

    expected = torch.stack([loss_of(t) for own in questions for t in own]).mean()
    before = [p.detach().clone() for p in step.model.parameters()]
    assert step(step.ahead(plan.steps[0]))() == pytest.approx(expected.item(), rel=1e-5)
    moved = [float((p.detach() - old).abs().max()) for p, old in zip(step.model.parameters(), before, strict=True)]
    assert max(moved) == pytest.approx(LEARNING_RATE, rel=0.05)  # the first update of Adam


@pytest.mark.slow
def test_compiled_layers_give_the_same_loss():
    case = steady.Case(CONFIGS["grouped heads, tied"], make_questions(), CPU, torch.float32)
    setting = {"micro_batches": 1, "recompute": 0.0}
    (_, eager), (_, compiled) = (steady.one_step(WAYS[name], case, setting) for name in ("step_rows", "compiled"))
    assert compiled == pytest.approx(eager, rel=1e-5)


# ---- TRL's own trainer ----------------------------------------------------------------------------------------------


def test_the_package_trl_computes_the_same(tmp_path):
    """Its PRMTrainer, where it is installed: the same loss and gradient for a batch, with its collator and its mask."""
    pytest.importorskip("trl.experimental.prm", reason="no TRL with a PRMTrainer is installed (1.13.0 has one)")
    datasets = pytest.importorskip("datasets")
    from tiny import tokenizer
    from trl.experimental.prm import PRMConfig, PRMTrainer

    config = CONFIGS["own heads, untied"]
    questions = make_questions(count=1)
    rows = []
    for t in questions[0]:
        labels = np.full(len(t.input_ids), -100)
        labels[t.step_tokens] = t.labels
        rows.append({"input_ids": t.input_ids.tolist(), "labels": labels.tolist()})
    model = random_model(
        AutoModelForTokenClassification, config, CPU, torch.float32, "sdpa", num_labels=2, classifier_dropout=0.3
    )
    arguments = PRMConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, bf16=False, report_to="none", use_cpu=True
    )
    trainer = PRMTrainer(
        model=model, args=arguments, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer(61)
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["attention_mask"].min() == 0
    loss = trainer.compute_loss(trainer.model.train(), batch)
    loss.backward()

    step = trl.build(config, CPU, torch.float32, {"recompute": False})
    plan = trl.plan(questions, 1, {"batch": 4}, CPU)
    assert float(step.backward(plan.steps[0])) == pytest.approx(loss.item(), rel=1e-6)
    for own, other in zip(step.parameters, trainer.model.parameters(), strict=True):
        assert relative_error(own.grad, other.grad) < 1e-5


# ---- plans ----------------------------------------------------------------------------------------------------------


def trajectories_of(name, batches):
    """The tokens of each trajectory in the micro-batches of a way."""
    found = []
    for batch in batches:
        if name in ("reference", "trl"):
            ids = batch.arguments["input_ids"].tolist()
            found += [tuple(row) for row in ids]
        elif name == "openrlhf":
            ids = batch.arguments["input_ids"][0]
            found += [tuple(part.tolist()) for part in ids.split(batch.arguments["lengths"])]
    return found


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "setting"),
    [("reference", {"parts": 1}), ("reference", {"parts": 4}), ("trl", {"batch": 4}), ("openrlhf", {"batch": 5})],
)
def test_every_trajectory_is_trained_on_once(name, setting, steps):
    questions = make_questions(count=6)
    plan = WAYS[name].plan(questions, steps, setting, CPU)
    found = trajectories_of(name, [batch for step in plan.steps for batch in step])
    # padding is 0, which is no token of these
    trimmed = sorted(tuple(token for token in row if token) for row in found)
    assert trimmed == sorted(tuple(t.input_ids.tolist()) for own in questions for t in own)
    assert [sum(batch.weight for batch in step) for step in plan.steps] == pytest.approx([1.0] * len(plan.steps))
    assert len(plan.steps) == (min(steps, 1) if name == "reference" else steps)  # one batch of 24 is one step


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("micro_batches", [1, 2, 3])
def test_ours_trains_on_every_trajectory_once(tree, micro_batches):
    questions = make_questions(count=8)
    setting = {"micro_batches": micro_batches, "recompute": 0.0}
    plan = ours.plan(ours.Switches(tree=tree), questions, 2, setting, CPU)
    members = sorted(m for step in plan.steps for batch in step for m in batch.members)
    assert members == list(range(32))
    assert len(plan.steps) == 2
    assert max(b.num_tokens for step in plan.steps for b in step) <= plan.notes["micro_batch_tokens"]


def padded_pairs(batches):
    """(tokens, pairs) of padded micro-batches, one at a time."""
    tokens = pairs = 0
    for batch in batches:
        rows, width = batch.arguments["input_ids"].shape
        for _ in range(rows):
            for i in range(width):
                tokens, pairs = tokens + 1, pairs + i + 1
    return tokens, pairs


@pytest.mark.parametrize(("name", "setting"), [("reference", {"parts": 2}), ("trl", {"batch": 5})])
def test_padding_is_counted(name, setting):
    plan = WAYS[name].plan(make_questions(), 2, setting, CPU)
    tokens, pairs = padded_pairs([batch for step in plan.steps for batch in step])
    values = 1 if name == "reference" else 2
    assert plan.rows == RowCounts(tokens, pairs, tokens, values * tokens)
    assert plan.logit_passes == (1 if name == "reference" else 0)


@pytest.mark.parametrize("step_rows", [False, True])
@pytest.mark.parametrize("tree", [False, True])
def test_our_pairs_are_those_of_the_rule(tree, step_rows):
    plan = ours.plan(
        ours.Switches(tree=tree, step_rows=step_rows), make_questions(), 1, {"micro_batches": 2, "recompute": 0}, CPU
    )
    tokens = pairs = rows = steps = 0
    for batch in plan.steps[0]:
        assert (batch.paths is not None) == tree
        for queries, keys in zip(batch.lengths, batch.path_lengths, strict=True):
            tokens, pairs = tokens + queries, pairs + sum(range(keys - queries + 1, keys + 1))
        rows += len(set(batch.step_tokens.tolist()))
        steps += batch.num_steps
    assert plan.rows == RowCounts(tokens, pairs, rows if step_rows else tokens, steps)


def test_flops_of_a_plan():
    products = count_model_flops(CONFIGS["grouped heads, tied"])
    plan = PassPlan([], RowCounts(10, 55, 4, 7), logit_passes=3)
    # last_rows: what the last layer computes for a row behind its attention, forward + backward
    layers = 10 * products.layers - 6 * products.last_rows
    attention = 6 * products.pair * 55 * products.depth
    assert products.depth == 2
    assert plan.flops(products) == layers + attention + 7 * products.value + 3 * 10 * products.logits


def test_padding_at_scale():
    """Batches of like length out of thousands: less padding the smaller they are, and hardly any."""
    padding = [trl.padding_at_scale(batch) for batch in (4, 16, 64)]
    assert 1 <= padding[0] < padding[1] < padding[2] < 1.06
    plan = trl.plan(make_questions(), 1, {"batch": 5}, CPU)
    assert plan.excess == pytest.approx(plan.notes["padding"] / trl.padding_at_scale(5))


# ---- master weights -------------------------------------------------------------------------------------------------


def test_master_weights_are_those_of_adamw_in_float32(monkeypatch):
    """Also for steps that bfloat16 cannot show, in parts, and for a weight without a gradient."""
    rate = 2e-3
    monkeypatch.setattr("pqm_benchmarks.train.ways.optimizers.PART", 20)
    monkeypatch.setattr("pqm_benchmarks.train.ways.optimizers.LEARNING_RATE", rate)
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(n, 4).bfloat16()) for n in (3, 9, 1, 2)]
    single = [nn.Parameter(w.detach().float()) for w in weights]
    start = [w.detach().clone() for w in weights]
    ours, theirs = MasterAdamW(weights), torch.optim.AdamW(single, lr=rate, fused=True)
    assert [len(parameters) for parameters, _, _ in ours.parts] == [2, 2]
    for _ in range(3):
        for w, s in zip(weights[:3], single, strict=False):
            w.grad = torch.randn(w.shape).bfloat16()
            s.grad = w.grad.float()
        ours.step()
        theirs.step()
        ours.zero_grad()
        assert all(w.grad is None for w in weights)
    masters = [m for _, own, _ in ours.parts for m in own]
    for w, m, s in zip(weights, masters, single, strict=True):
        assert torch.equal(m, s)
        assert torch.equal(w, s.bfloat16())
    assert torch.equal(masters[3], start[3].float())
    assert (masters[0] != start[0].float()).all()
    moved = weights[0] != start[0]
    assert moved.any()
    assert not moved.all()


def test_weights_depend_on_their_names_alone():
    config = CONFIGS["grouped heads, tied"]
    causal = random_model(AutoModelForCausalLM, config, CPU, torch.float32, "eager")
    classifier = random_model(AutoModelForTokenClassification, config, CPU, torch.float32, "eager", num_labels=1)
    half = random_model(AutoModelForCausalLM, config, CPU, torch.bfloat16, "eager")
    own = dict(classifier.model.named_parameters())
    for name, parameter in causal.model.named_parameters():
        assert torch.equal(parameter, own[name])
        assert torch.equal(parameter.bfloat16(), half.model.get_parameter(name))
    assert not torch.equal(own["layers.0.self_attn.q_proj.weight"], own["layers.1.self_attn.q_proj.weight"])
    assert getattr(config, "num_labels", 2) == 2  # the config that was given is left as it is


# ---- choosing a setting ---------------------------------------------------------------------------------------------


def made_way(seconds, monkeypatch, excess=None):
    """A way of two families whose optimizer step takes so long by setting, or raises."""
    settings = [{"batch": b, "recompute": r} for r in (False, True) for b in (3, 2, 1)]
    families = (tuple(settings[:3]), tuple(settings[3:]))
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    class MadeStep:
        def __init__(self, found):
            self.found = found

        def ahead(self, batches):
            return batches

        def __call__(self, batches):
            if isinstance(self.found, Exception):
                raise self.found
            clock[0] += self.found
            return lambda: 0.5

    def plan(questions, steps, setting, device):
        return PassPlan([[]], RowCounts(1, 1, 1, 1), excess=(excess or {}).get(setting["batch"], 1.0))

    found = dict(zip(map(str, settings), seconds, strict=True))
    return TrainingWay("made", "", "", families, plan, lambda config, device, dtype, s: MadeStep(found[str(s)]))


CASE = steady.Case(None, [], CPU, torch.float32)


def tried_by(way, tries=100):
    return [(t["setting"]["batch"], t["setting"]["recompute"]) for t in steady.try_settings(way, CASE, tries)]


def test_smaller_batches_are_tried_until_they_are_slower(monkeypatch):
    way = made_way([4.0, 3.0, 3.5, 5.0, 2.0, 1.0], monkeypatch)
    assert tried_by(way) == [(3, False), (2, False), (1, False), (3, True)]
    found = steady.try_settings(way, CASE, 100)
    assert fastest(found)[:2] == [{"batch": 2, "recompute": False}, {"batch": 1, "recompute": False}]
    assert [t["loss"] for t in found] == [0.5] * 4
    assert tried_by(way, tries=2) == [(3, False), (2, False)]


def test_what_does_not_fit_is_recorded_and_the_next_is_tried(monkeypatch):
    full = torch.OutOfMemoryError("2 TB wanted")
    way = made_way([full, full, full, full, 2.0, 1.0], monkeypatch)
    found = steady.try_settings(way, CASE, 100)
    assert [t["why"] for t in found] == ["out of memory"] * 4 + [None, None]
    assert fastest(found)[0] == {"batch": 1, "recompute": True}


def test_another_error_ends_the_search_and_is_told(monkeypatch, capsys):
    way = made_way([ValueError("no such kernel"), 1.0, 1.0, 1.0, 1.0, 1.0], monkeypatch)
    [found] = steady.try_settings(way, CASE, 100)
    assert found["why"] == "ValueError: no such kernel"
    assert "Traceback" in capsys.readouterr().err


def test_settings_are_chosen_as_for_a_whole_data_set(monkeypatch):
    way = made_way([4.0, 3.0, 9.0, 9.0, 9.0, 9.0], monkeypatch, excess={3: 2.0})
    assert fastest(steady.try_settings(way, CASE, 100))[0] == {"batch": 3, "recompute": False}


def test_passes_go_on_for_the_time_that_they_have(monkeypatch):
    way = made_way([2.0] * 6, monkeypatch)
    setting = {"batch": 3, "recompute": False}
    plan = way.plan([], 1, setting, CPU)
    assert steady.run_laps(way, CASE, setting, plan, 0.0) == ([2.0], 0.5, None)
    assert steady.run_laps(way, CASE, setting, plan, 7.0).seconds == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", ("H200", 989.0)),
        ("NVIDIA H200 NVL", ("H200 NVL", 835.0)),
        ("NVIDIA H100 80GB HBM3", ("H100", 989.0)),
        ("NVIDIA H100 PCIe", ("H100 PCIe", 756.0)),
        ("NVIDIA A100-SXM4-80GB", ("A100", 312.0)),
        ("NVIDIA GeForce RTX 4090", None),
        ("CPU, 2 cores", None),
    ],
)
def test_the_peak_is_that_of_the_device_or_none(name, expected):
    assert devices.peak_of(name) == expected


def test_matrix_rate():
    assert 0 < devices.matrix_rate(CPU, torch.float32) < 100


# ---- in half precision, as they are timed ----------------------------------------------------------------------------

COMPILED = ("compiled", "all")
PLACES = [
    pytest.param(name, device, marks=[pytest.mark.gpu] if device == "cuda" else [pytest.mark.slow] * (name in COMPILED))
    for name in WAYS
    for device in ("cpu", "cuda")
]


@pytest.mark.parametrize(("name", "device"), PLACES)
def test_every_way_runs_in_bfloat16(name, device):
    """With the loss that it has in float32."""
    config, device = Shape("", "qwen2", 128, 2, 4, 2, 256, 61, True).config(), torch.device(device)
    setting, questions = WAYS[name].families[-1][-1], make_questions()
    case = steady.Case(config, questions, device, torch.bfloat16)
    plan = WAYS[name].plan(questions, 2, setting, device)
    laps = steady.run_laps(WAYS[name], case, setting, plan, 0.0)
    assert (laps.peak_bytes is not None) == (device.type == "cuda")
    eager = "step_rows" if name in COMPILED else name
    single = WAYS[eager].build(config, CPU, torch.float32, setting)
    plan = WAYS[eager].plan(questions, 2, setting, CPU)
    assert laps.loss == pytest.approx(single(single.ahead(plan.steps[0]))(), rel=2e-2)


@pytest.mark.gpu
def test_packed_attention_is_the_same_on_a_gpu():
    lengths = [5, 130, 17]
    heads = [torch.randn(1, h, sum(lengths), 64, device="cuda", dtype=torch.bfloat16) for h in (4, 2, 2)]
    cu_seqlens = torch.tensor([0, 5, 135, 152], dtype=torch.int32, device="cuda")
    got, _ = openrlhf._attend(None, *heads, None, cu_seqlens=cu_seqlens, lengths=lengths, scaling=0.1)
    on_cpu = [x.cpu().double() for x in heads]
    expected, _ = openrlhf._attend(None, *on_cpu, None, cu_seqlens=cu_seqlens.cpu(), lengths=lengths, scaling=0.1)
    assert relative_error(got.cpu().double(), expected) < 1e-2
