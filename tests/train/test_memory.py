"""The estimate of memory: what autograd keeps, compared with a count by hand, and the sizes chosen from it."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_models import make_model
from pqm_kernels import AdamW
from torch import nn
from transformers import AutoConfig, AutoModelForTokenClassification

from pqm_fast.data.pack import pack, pack_trees
from pqm_fast.data.trajectory import Trajectory
from pqm_fast.model.attention import kernels
from pqm_fast.model.attention.packed import PACKED_ATTENTION
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.train import layer_memory
from pqm_fast.train.guard import StepGuard
from pqm_fast.train.layer_memory import LayerBytes, measure_layer
from pqm_fast.train.layers import compile_layers, recompute
from pqm_fast.train.memory import HOST_RESERVE, MemoryEstimate, Sizes, choose_sizes, estimate_memory, fit_memory
from pqm_fast.train.optim import sum_gradients_in_float32
from pqm_fast.train.step import Objective, train_step


def test_what_a_layer_keeps_is_what_autograd_frees(tmp_path):
    """Compared with the fewest tensors that any implementation must keep."""
    model = make_model(tmp_path, "llama", hidden_size=64, intermediate_size=160)
    measured = measure_layer(model, 512)
    assert measured.recomputed == 64 * 4  # the input, float32
    # what every implementation must keep: the input, its norm's result, q, k, v, attention's result, the
    # second norm's input and result, gate, up, and their product's factors
    least = 4 * (64 * 8 + 160 * 3)
    assert least <= measured.kept <= 3 * least
    assert measure_layer(model, 1024).kept == pytest.approx(measured.kept, rel=0.02)


class KeepsItsInputs(torch.autograd.Function):
    """Saves what attention kernels save."""

    @staticmethod
    def forward(ctx, query, key, value):
        ctx.save_for_backward(query, key, value)
        return query.clone()


@pytest.mark.parametrize("ratio", [1.3, 1.6, 8.0])
def test_a_tree_keeps_a_key_and_a_value_for_each_token_of_a_path(tmp_path, monkeypatch, ratio):
    model = make_model(tmp_path, "llama")
    monkeypatch.setattr("pqm_fast.model.packed_decoder.choose_backend", lambda *args: "varlen")
    monkeypatch.setattr(kernels, "HALF", (torch.float32,))
    monkeypatch.setattr(kernels, "find", lambda *args, **how: lambda *qkv, **how: KeepsItsInputs.apply(*qkv[:3]))
    plain, tree = (measure_layer(model, 1024, each).kept for each in (1.0, ratio))
    of_a_token = 2 * model.config.num_key_value_heads * 8 * 4  # heads of 8, float32
    assert tree - plain == pytest.approx((ratio - 1) * of_a_token, rel=0.03)


@settings(deadline=None)  # the time of a loaded machine says nothing
@given(st.integers(1, 2000), st.integers(1, 300), st.floats(1, 40))
def test_the_measured_tree_fits(tokens, longest, ratio):
    made = layer_memory._tree(tokens, longest, ratio, 1000)
    assert all(0 < len(t.input_ids) <= longest + 1 for _, t in made)
    assert 0 < pack_trees([made], pad_to=tokens).num_tokens <= tokens


@pytest.mark.parametrize("compiled", [False, True])
def test_what_was_measured_is_freed(tmp_path, monkeypatch, compiled):
    """It is freed at once: saved tensors must not hold themselves."""
    model = make_model(tmp_path)
    if compiled:
        torch.compiler.reset()
        compile_layers(model, backend="aot_eager")
    seen = []

    def noted(tensor):
        seen.append(weakref.ref(tensor))
        return storage(tensor)

    storage = layer_memory._storage
    monkeypatch.setattr(layer_memory, "_storage", noted)
    measure_layer(model, 256)
    gc.collect()
    of_model = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    assert len(seen) > 20
    assert not [ref() for ref in seen if ref() is not None and id(ref()) not in of_model]


class Linear(nn.Module):
    """A stand-in for a decoder layer that keeps a known number of bytes."""

    def __init__(self, layer):
        super().__init__()
        self.inner = nn.Linear(32, 100)
        self.layer = layer

    def forward(self, hidden, **kwargs):
        wide = self.inner(hidden).exp()  # keeps the input of the product, and the result of exp
        return hidden + wide.sum(-1, keepdim=True)


def test_what_a_layer_keeps_counted_by_hand(tmp_path):
    model = make_model(tmp_path, "gemma")
    model.backbone.layers[0] = Linear(model.backbone.layers[0])
    assert measure_layer(model, 256) == LayerBytes(kept=4 * (32 + 100), recomputed=4 * 32)


def test_what_is_recomputed_keeps_its_input_alone(tmp_path):
    model = make_model(tmp_path)
    before = measure_layer(model, 256)
    recompute(model, 1)
    after = measure_layer(model, 256)
    assert after.recomputed == before.recomputed
    assert after.kept < 1.5 * before.recomputed < before.kept


def test_compiled_layers_are_measured_as_they_are(tmp_path):
    model = make_model(tmp_path)
    eager = measure_layer(model, 256).kept
    torch.compiler.reset()
    compile_layers(model, backend="aot_eager")
    assert 0.3 * eager < measure_layer(model, 256).kept <= 1.2 * eager


@pytest.mark.parametrize(
    ("dtype", "optimizer", "accumulation", "expected"),
    [
        # weights, gradients, optimizer
        (torch.float32, "adamw", 1, (4, 4, 8)),
        (torch.float32, "adamw", 4, (4, 4, 8)),
        (torch.bfloat16, "adamw", 1, (2, 2, 10)),
        (torch.bfloat16, "adamw", 4, (2, 4, 10)),
        (torch.bfloat16, "adamw-8bit", 1, (2, 2, 2)),
    ],
)
def test_bytes_of_a_parameter(tmp_path, dtype, optimizer, accumulation, expected):
    model = make_model(tmp_path).to(dtype)
    count = sum(p.numel() for p in model.parameters())
    estimate = estimate_memory(model, LayerBytes(0, 0), Sizes(100, accumulation, 0), optimizer)
    assert (estimate.weights, estimate.gradients, estimate.optimizer) == tuple(n * count for n in expected)
    model.requires_grad_(False)
    assert estimate_memory(model, LayerBytes(0, 0), Sizes(100, 1, 0), optimizer).total == estimate.weights


def test_activations_at_their_peak(tmp_path):
    model, layer = make_model(tmp_path), LayerBytes(kept=100, recomputed=10)

    def activations(again):
        return estimate_memory(model, layer, Sizes(50, 1, again), "adamw").activations

    assert activations(0) == 50 * (3 * 100 + 100)
    assert activations(1) == 50 * (2 * 100 + 10 + 100)  # the layer computed again comes when the others are done
    assert activations(3) == 50 * (3 * 10 + 200)


def choices(room, **options):
    """The sizes chosen if `tokens` x (30 - recomputed layers) must not be more than `room`."""
    given = {"tokens": "auto", "micro_batches": 2, "recompute_layers": "auto", "depth": 28, "longest": 1024} | options
    return choose_sizes(**given, fits=lambda s: s.micro_batch_tokens * (30 - s.recompute_layers) <= room)


def test_sizes_are_as_large_as_fit():
    assert choices(10**9) == Sizes(16384, 2, 0)
    assert choices(16384 * 30) == Sizes(16384, 2, 0)
    assert choices(16384 * 30 - 1) == Sizes(8192, 4, 0)  # an optimizer step stays as large
    assert choices(8192 * 30) == Sizes(8192, 4, 0)
    assert choices(8192 * 30 - 1) == Sizes(8192, 4, 1)  # then as few layers as needed
    assert choices(8192 * 20) == Sizes(8192, 4, 10)
    assert choices(8192 * 2) == Sizes(8192, 4, 28)
    assert choices(8192 * 2 - 1) == Sizes(4096, 8, 28)
    assert choices(2048 * 2) == Sizes(2048, 16, 28)
    assert choices(0) == Sizes(1024, 32, 28)  # the smallest: they may fit, because this is an estimate
    assert choices(0, longest=5000) == Sizes(8192, 4, 28)
    assert choices(10**9, longest=30000) == Sizes(30000, 2, 0)


def test_what_was_asked_for_is_kept():
    assert choices(0, tokens=8192, recompute_layers=3) == Sizes(8192, 2, 3)
    assert choices(8192 * 20, tokens=8192) == Sizes(8192, 2, 10)
    assert choices(8192 * 20, recompute_layers=5) == Sizes(4096, 8, 5)
    assert choices(10**9, recompute_layers="all") == Sizes(16384, 2, 28)
    assert choices(10**9, recompute_layers=99) == Sizes(16384, 2, 28)


def test_where_small_batches_cost_nothing_layers_are_computed_again_last():
    assert choices(8192 * 30 - 1, fewest=0) == Sizes(4096, 8, 0)
    assert choices(1024 * 30, fewest=0) == Sizes(1024, 32, 0)
    assert choices(1024 * 30 - 1, fewest=0) == Sizes(1024, 32, 1)
    assert choices(0, fewest=0) == Sizes(1024, 32, 28)
    assert choices(0, fewest=0, recompute_layers=5) == Sizes(1024, 32, 5)


@pytest.fixture
def on_cpu(tmp_path, monkeypatch):
    """(`fit_memory` for a tiny model on a CPU with `free` bytes of memory, the estimated bytes of given sizes)."""
    model = make_model(tmp_path)
    layer = measure_layer(model, 1024)

    def fit(free, tokens="auto", recompute_layers="auto"):
        monkeypatch.setattr("pqm_fast.train.memory.free_on_host", lambda: free)
        return fit_memory(model, tokens, 1, recompute_layers, longest=64, optimizer="adamw")

    return fit, lambda *sizes: estimate_memory(model, layer, Sizes(*sizes), "adamw").total


def test_a_cpu_takes_what_fits(on_cpu):
    def sizes(room, **options):
        return fit(room / (1 - HOST_RESERVE) + 2, **options)[0]

    fit, total = on_cpu
    assert sizes(total(16384, 1, 0)) == Sizes(16384, 1, 0)
    assert sizes(total(16384, 1, 0) - 10) == Sizes(8192, 2, 0)
    assert sizes(total(64, 256, 0)) == Sizes(64, 256, 0)
    assert sizes(total(64, 256, 0) - 10).recompute_layers > 0
    assert sizes(0) == Sizes(64, 256, 3)
    assert sizes(total(512, 1, 2), tokens=512) == Sizes(512, 1, 2)
    assert sizes(0, recompute_layers=0) == Sizes(64, 256, 0)


def test_a_cpu_says_what_it_estimates(on_cpu):
    fit, _ = on_cpu
    sizes, note = fit(10**11)
    assert sizes == Sizes(16384, 1, 0)
    assert note.startswith("memory, estimated: weights 0.0 +")
    assert note.endswith(f" GB of {100 * (1 - HOST_RESERVE):.1f}")
    assert "it may not fit" in fit(0)[1]
    assert fit(0, tokens=512, recompute_layers=0) == (Sizes(512, 1, 0), None)


def test_a_cpu_measures_a_layer_on_few_tokens(on_cpu, monkeypatch):
    fit, _ = on_cpu
    measured = []
    monkeypatch.setattr(
        "pqm_fast.train.memory.measure_layer", lambda model, tokens, *rest: measured.append(tokens) or LayerBytes(1, 1)
    )
    for tokens in ("auto", 4096, 512):
        fit(10**11, tokens=tokens)
    assert measured == [1024, 1024, 512]


def test_the_estimate_in_words():
    needed = MemoryEstimate(14_000_000_000, 14, 70_000_000_000, 26_000_000_000)
    text = "memory, estimated: weights 14.0 + gradients 0.0 + optimizer 70.0 + activations 26.0 = 110.0 GB of "
    assert needed.describe(150 * 10**9) == f"{text}150.0"
    assert needed.describe(100 * 10**9).startswith(f"{text}100.0: it may not fit. --optimizer adamw-8bit")


@pytest.fixture
def clean_gpu():
    """Frees the memory of earlier tests, and forgets what was compiled."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.gpu
@pytest.mark.usefixtures("clean_gpu")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("again", [0, 2, 6])
def test_the_estimate_is_close_to_the_peak(compiled, again):
    """Never far too low, which would end in an error; never twice the peak."""
    model = made_on_gpu()
    if compiled:
        compile_layers(model)
    sizes = Sizes(8192, 1, again)
    estimate = estimate_memory(model, measure_layer(model, sizes.micro_batch_tokens), sizes, "adamw")
    recompute(model, again)
    batch = full_batch(sizes.micro_batch_tokens)
    for _ in range(2):
        model.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        model.train()(batch, loss="rank", zeta=4.0).loss.backward()
    peak = torch.cuda.max_memory_allocated()
    expected = estimate.weights + estimate.gradients + estimate.activations
    assert 0.7 * peak <= expected <= 1.5 * peak


@pytest.mark.gpu
@pytest.mark.usefixtures("clean_gpu")
@pytest.mark.parametrize("again", [0, 2])
@pytest.mark.parametrize("trees", [False, True])
def test_a_step_waits_for_nothing(again, trees):
    model = made_on_gpu()
    compile_layers(model)
    recompute(model, again)
    sum_gradients_in_float32(model)
    optimizer = AdamW(model.parameters())
    planner = model.planner()
    batches = [full_batch(4096, trees), full_batch(4096, trees)]
    planned = [
        (replace(b, **{k: v.pin_memory() for k, v in vars(b).items() if torch.is_tensor(v)}), planner(b).pin_memory())
        for b in batches
    ]
    guard = StepGuard(6.0, "cuda")
    for _ in range(2):
        train_step(model, optimizer, planned, Objective(), guard=guard).wait()
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = train_step(model, optimizer, planned, Objective(), guard=guard)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert pending.wait().finite


def made_on_gpu():
    config = AutoConfig.for_model(
        "qwen2", hidden_size=896, num_hidden_layers=6, num_attention_heads=14, num_key_value_heads=2,
        intermediate_size=4864, vocab_size=2048, num_labels=1, classifier_dropout=0.0,
    )  # fmt: skip
    with torch.device("cuda"):
        classifier = AutoModelForTokenClassification.from_config(config, dtype=torch.bfloat16)
    classifier.set_attn_implementation(PACKED_ATTENTION)
    return StepQModel(classifier)


def full_batch(tokens, trees=False):
    """A batch of `tokens` tokens with two solutions per question, which share the first quarter."""
    rng = np.random.default_rng(0)
    groups, left, number = [], tokens, 0
    while left > 0:
        length = min(256, left if trees else left // 2 or 1)
        stem = rng.integers(0, 2048, length // 4)
        group = []
        for _ in range(2):
            ids = np.concatenate([stem, rng.integers(0, 2048, length - len(stem))])
            group.append((number, Trajectory(ids, np.array([length - 1]), np.ones(1, np.float32))))
            number += 1
        left -= 2 * length - (len(stem) if trees else 0)
        groups.append(group)
    if left < 0:
        groups.pop()
    made = pack_trees(groups, pad_to=tokens)
    return made if trees else pack([pair for group in groups for pair in group], pad_to=tokens)


def test_the_batches_of_the_gpu_tests_are_full():
    for trees in (False, True):
        batch = full_batch(4096, trees)
        assert batch.input_ids.shape == (4096,)
        assert batch.num_tokens > 3500
        assert (batch.paths is not None) == trees
