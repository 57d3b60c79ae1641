"""The last layer at step rows only: the same scores and gradients from less work."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import stand_ins
import tiny
import torch
from packed_models import STEP_ROWS, assert_same, gradients, make_model, one_by_one, solutions, trajectories
from torch import nn

from pqm_fast.data.pack import pack, pack_trees
from pqm_fast.data.trajectory import Trajectory
from pqm_fast.model.attention import kernels
from pqm_fast.model.last_layer import restrict_to_step_rows
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.train.layers import recompute


def rows_of_last_layer(model, batch, part="mlp"):
    """The number of rows that a part of the last layer computes for a batch."""
    seen = []
    module = model.backbone.layers[-1].get_submodule(part)
    hook = module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    model.scores(batch)
    hook.remove()
    [rows] = seen
    return rows


@pytest.mark.parametrize("architecture", STEP_ROWS)
def test_only_rows_that_steps_read_are_computed(tmp_path, architecture):
    batch = pack_trees(solutions(), pad_to=128)
    rows = len(batch.step_tokens.unique())
    assert rows < batch.num_steps < 128
    model = make_model(tmp_path, architecture)
    needed = {"mlp": rows, "self_attn.o_proj": rows, "post_attention_layernorm": rows}
    needed |= {f"self_attn.{name}_proj": 128 for name in "qkv"}
    assert {part: rows_of_last_layer(model, batch, part) for part in needed} == needed
    assert model.hidden(batch).shape == (128, 32)
    model.step_rows_only = False
    assert {part: rows_of_last_layer(model, batch, part) for part in needed} == dict.fromkeys(needed, 128)


def test_it_can_be_switched_off(tmp_path):
    model = make_model(tmp_path, step_rows_only=False)
    assert not model.step_rows_only
    assert type(model.backbone.layers[-1]).__name__ == "LlamaDecoderLayer"


@pytest.mark.parametrize("architecture", [a for a in tiny.ARCHITECTURES if a not in STEP_ROWS])
def test_other_architectures_compute_every_row(tmp_path, architecture):
    model = make_model(tmp_path, architecture)
    before = type(model.backbone.layers[-1]) if hasattr(model.backbone, "layers") else None
    assert not model.step_rows_only
    assert not restrict_to_step_rows(model.backbone)
    assert before is None or type(model.backbone.layers[-1]) is before


def test_a_subclass_of_a_known_layer_is_not_changed(tmp_path):
    """It may compute something else."""
    model = make_model(tmp_path, step_rows_only=False)
    layer = model.backbone.layers[-1]
    layer.__class__ = type("Other", (type(layer),), {})
    assert not restrict_to_step_rows(model.backbone)


VARIANTS = {
    "llama": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2},
    "llama-rope": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
    "mistral": {"sliding_window": 3},
    "mistral-full": {"sliding_window": None},
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": 4,
        "layer_types": ["full_attention"] + ["sliding_attention"] * 2,
    },
    "qwen2-full": {
        "use_sliding_window": True,
        "sliding_window": 4,
        "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
    },
    "qwen3": {
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 4,
        "layer_types": ["sliding_attention"] * 3,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_the_layer(tmp_path, variant):
    model = make_model(tmp_path, variant.split("-")[0], **VARIANTS[variant])
    for parameter in model.parameters():  # new biases are zero, so leaving them out would not show
        nn.init.normal_(parameter, std=0.2)
    groups = solutions()
    expected = one_by_one(model, [t for group in groups for _, t in group])
    assert_same(model, [pack_trees(groups)], expected)
    assert_same(model, [pack([t for group in groups for t in group], pad_to=200)], expected)


def made_of(*rows_and_length):
    rng = np.random.default_rng(0)
    for rows, length in rows_and_length:
        labels = np.arange(len(rows), dtype=np.float32) % 2
        yield Trajectory(rng.integers(0, 97, length), np.array(rows, dtype=np.int32), labels)


@pytest.mark.parametrize(
    "made",
    [
        pytest.param([([4], 9)], id="one trajectory, one step"),
        pytest.param([([0], 1)], id="one token"),
        pytest.param([([0], 12), ([0, 5], 7)], id="a step on the first token"),
        pytest.param([([0, 1, 2, 3], 4), ([0, 1], 2)], id="a step on every token"),
        pytest.param([([], 9), ([2, 7], 8), ([], 8), ([0, 3], 20)], id="some without steps"),
        pytest.param([([16], 17), ([], 33), ([7], 8)], id="a group without steps"),
    ],
)
def test_odd_batches(tmp_path, made):
    model = make_model(tmp_path, "qwen3")
    made = list(made_of(*made))
    expected = one_by_one(model, made)
    pairs = list(enumerate(made))
    for pad_to in (None, 128):
        assert_same(model, [pack(pairs, pad_to=pad_to)], expected)
        assert_same(model, [pack_trees([[pair] for pair in pairs], pad_to=pad_to)], expected)


@pytest.mark.parametrize("pad_to", [None, 64])
def test_no_steps_at_all(tmp_path, pad_to):
    """The loss is 0, and every parameter has a gradient of zeros, not None: distributed workers wait for gradients."""
    model = make_model(tmp_path)
    for batch in (pack(enumerate(made_of(([], 9), ([], 20))), pad_to=pad_to), pack([], pad_to=pad_to or 1)):
        model.zero_grad()
        out = model(batch, loss="rank", zeta=2.0)
        out.loss.backward()
        assert out.loss == 0
        assert len(out.q) == len(model.scores(batch)) == 0
        assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("architecture", STEP_ROWS)
def test_scores_are_those_of_the_whole_layer(tmp_path, architecture, monkeypatch):
    """Also through the code for GPU kernels, with a stand-in of the same signature."""
    model = make_model(tmp_path, architecture).eval()
    batch = pack_trees(solutions(), pad_to=256)
    narrow_scores = model.scores(batch)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "HALF", (torch.float32,))
        patch.setattr(kernels, "find", lambda *args, **how: kernels.calling_flash(stand_ins.flash_2))
        varlen = replace(model.planner(), backend="flash")
        assert (model.scores(batch, varlen(batch)) - narrow_scores).abs().max() <= 1e-5
    model.step_rows_only = False
    assert (model.scores(batch) - narrow_scores).abs().max() <= 1e-5


@pytest.mark.parametrize("trees", [False, True])
def test_activation_checkpointing_recomputes_the_narrow_layer(tmp_path, trees):
    model = make_model(tmp_path, "llama")
    batch = pack_trees(solutions()) if trees else pack(list(enumerate(trajectories())))
    model(batch, loss="rank", zeta=2.0).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    recompute(model, 3)
    rows = []
    model.backbone.layers[-1].mlp.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape[1]))
    model.train()(batch, loss="rank", zeta=2.0).loss.backward()
    assert rows == [len(batch.step_tokens.unique())] * 2  # once more in the backward pass
    for name, gradient in gradients(model).items():
        assert tiny.relative_error(gradient, expected[name]) <= 1e-5, name


def test_autocast_rounds_as_the_whole_layer_does(tmp_path):
    """Computed in bfloat16, it is about as close to float32 as the whole layer is."""
    model = make_model(tmp_path, "qwen2", hidden_size=64, num_hidden_layers=1)
    batch = pack_trees(solutions())

    def run(step_rows_only, autocast):
        model.step_rows_only = step_rows_only
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(batch, loss="rank", zeta=2.0).loss.backward()
        return torch.cat([g.flatten() for g in gradients(model).values()])

    exact = run(False, False)
    whole, ours = (tiny.relative_error(run(only, True), exact) for only in (False, True))
    assert 0 < ours <= 1.5 * whole


class LowRank(nn.Module):
    """The replacement of a linear layer in LoRA."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, base.in_features) / 4)
        self.up = nn.Parameter(torch.randn(base.out_features, 2) / 4)

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


def test_low_rank_adapters_take_part(tmp_path):
    model = make_model(tmp_path, "qwen3")
    torch.manual_seed(1)
    for layer in model.backbone.layers:
        for owner, names in ((layer.self_attn, "qkvo"), (layer.mlp, ("gate", "up", "down"))):
            for name in names:
                setattr(owner, f"{name}_proj", LowRank(getattr(owner, f"{name}_proj")))
    groups = solutions()
    expected = one_by_one(model, [t for group in groups for _, t in group])
    assert sum(name.endswith("proj.down") for name in expected[2]) == 3 * 7
    assert_same(model, [pack_trees(groups)], expected)


def test_a_copy_is_independent(tmp_path):
    """Parameter names are transformers' own, and a copy does not compute with the weights of its model."""
    model = make_model(tmp_path)
    whole = make_model(tmp_path, step_rows_only=False)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in whole.named_parameters()]
    batch = pack(list(enumerate(trajectories())))
    before = model.scores(batch)
    other = copy.deepcopy(model)
    nn.init.zeros_(other.backbone.layers[-1].mlp.down_proj.weight)
    assert torch.equal(model.scores(batch), before)
    assert not torch.equal(other.scores(batch), before)


def test_a_narrowed_model_can_be_pickled_and_narrowed_again(tmp_path):
    model = make_model(tmp_path, "qwen2").eval()
    batch = pack(list(enumerate(trajectories())))
    again = pickle.loads(pickle.dumps(model))
    assert again.scores(batch).equal(model.scores(batch))
    assert StepQModel(model.classifier).step_rows_only


def test_the_mask_of_a_tree_is_kept_once_for_all_layers(tmp_path):
    model = make_model(tmp_path, "qwen2")
    model.step_rows_only = False
    assert len(model.backbone.layers) > 1
    batch = pack_trees(solutions())
    kept = set()

    def note(tensor):
        if tensor.isneginf().any():
            kept.add((tensor.data_ptr(), tensor.shape[-2:]))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(batch, loss="rank", zeta=2.0)
    assert kept
    assert len(kept) == len({shape for _, shape in kept})
