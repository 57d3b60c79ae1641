"""Compiled, recomputed and replaced layers: the same gradient, and nothing compiled again once warm."""

import copy
import gc
import sys
import weakref

import numpy as np
import pytest
import tiny
import torch
from packed_models import gradients, make_model, solutions, trajectories
from torch._dynamo.utils import counters

from pqm_fast.data.pack import pack, pack_trees
from pqm_fast.errors import PQMError
from pqm_fast.train.layers import compile_layers, decoder_layers, recompute, use_float8, use_liger
from pqm_fast.train.lora import add_adapters


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def batches(budget=192):
    """Batches with the same number of tokens, but other numbers of trajectories and steps and other lengths; plain and
    in trees."""
    groups = solutions()
    many = [pack([t for group in groups[:n] for t in group], pad_to=budget) for n in (1, 3)]
    many += [pack_trees(groups[:n], pad_to=budget) for n in (1, 3)]
    return many + [pack(list(enumerate(trajectories(s, (5, 40, 3 + s)))), pad_to=budget) for s in range(2)]


def learn(model, batch):
    model.zero_grad()
    out = model.train()(batch, loss="rank", zeta=2.0)
    out.loss.backward()
    return float(out.loss.detach()), gradients(model)


def test_nothing_is_compiled_again_once_warm(tmp_path):
    """In an architecture whose layers are not all alike."""
    architecture = "gemma2"
    model = make_model(tmp_path, architecture, num_hidden_layers=3)
    whole = make_model(tmp_path, architecture, num_hidden_layers=3)
    whole.load_state_dict(model.state_dict())
    compile_layers(model, backend="aot_eager")
    many = batches()
    learn(model, many[0])
    model.eval()
    model.scores(many[0])
    warm = counters["stats"]["unique_graphs"]
    assert all(hasattr(layer.forward, "_torchdynamo_orig_callable") for layer in decoder_layers(model)[:-1])
    assert warm >= 2  # a layer is two graphs, attention between them
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in many:
            (loss, got), (expected_loss, expected) = learn(model, batch), learn(whole, batch)
            assert loss == pytest.approx(expected_loss, rel=1e-5)
            for name, gradient in expected.items():
                if gradient.norm() > 1e-6:
                    assert tiny.relative_error(got[name], gradient) <= 1e-5, name
            assert (model.eval().scores(batch) - whole.eval().scores(batch)).abs().max() <= 1e-5
    assert counters["stats"]["unique_graphs"] == warm


def test_layers_share_what_is_compiled(tmp_path):
    """Five layers are compiled as often as two."""
    graphs = []
    for depth in (3, 6):
        torch.compiler.reset()
        counters.clear()
        model = make_model(tmp_path, "llama", num_hidden_layers=depth)
        compile_layers(model, backend="aot_eager")
        learn(model, batches()[0])
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 0


@pytest.mark.parametrize("count", [0, 1, 3])
def test_recomputed_layers_do_not_change_the_gradient(tmp_path, count):
    model = make_model(tmp_path, "qwen3")
    batch = batches()[-1]
    loss, expected = learn(model, batch)
    recompute(model, count)
    calls = [0] * 3
    for i, layer in enumerate(decoder_layers(model)):
        layer.mlp.register_forward_pre_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
    got_loss, got = learn(model, batch)
    assert got_loss == pytest.approx(loss, rel=1e-6)
    assert calls == [2] * count + [1] * (3 - count)
    for name, gradient in expected.items():
        assert tiny.relative_error(got[name], gradient) <= 1e-5, name


def test_recomputed_layers_score_as_before(tmp_path):
    model = make_model(tmp_path).eval()
    batch = batches()[0]
    expected = model.scores(batch)
    recompute(model, 3)
    assert torch.equal(model.scores(batch), expected)


def compiled_and_recomputed(tmp_path):
    model = make_model(tmp_path)
    compile_layers(model, backend="aot_eager")
    recompute(model, 2)
    return model


def test_a_copy_does_not_share_weights_and_an_unused_model_is_freed_at_once(tmp_path):
    """Otherwise it would hold GPU memory until the garbage collector runs."""
    model = compiled_and_recomputed(tmp_path)
    batch = batches()[0]
    loss, _ = learn(model, batch)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not twin(batch, loss="rank", zeta=2.0).q.any()
    assert learn(model, batch)[0] == loss
    del twin
    gc.collect()  # frees what compiling has left behind, once, in the first steps
    parts = [weakref.ref(part) for part in (*model.modules(), *model.parameters())]
    gc.disable()
    try:
        del model
        assert not any(part() is not None for part in parts)
    finally:
        gc.enable()


def test_layers_keep_their_names(tmp_path):
    plain, model = make_model(tmp_path), compiled_and_recomputed(tmp_path)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert list(map(repr, decoder_layers(model))) == list(map(repr, decoder_layers(plain)))
    for layer, before in zip(decoder_layers(model), decoder_layers(plain), strict=True):
        assert isinstance(layer, type(before))
        assert str(type(layer)) == str(type(before))


def test_adapters_learn_in_compiled_layers(tmp_path):
    pytest.importorskip("peft")
    model = make_model(tmp_path)
    add_adapters(model, 2, 4)
    whole = copy.deepcopy(model)
    compile_layers(model, backend="aot_eager")
    recompute(model, 2)
    (loss, got), (expected_loss, expected) = (learn(each, batches()[0]) for each in (model, whole))
    assert counters["stats"]["unique_graphs"] >= 2  # recomputation did not keep it from being compiled
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(got[name], gradient, atol=1e-6), name


def test_dropout_is_the_same_the_second_time(tmp_path):
    model = make_model(tmp_path, "llama", attention_dropout=0.5)
    batch = batches()[0]
    torch.manual_seed(0)
    _, expected = learn(model, batch)
    recompute(model, 3)
    torch.manual_seed(0)
    _, got = learn(model, batch)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_liger_has_the_layers(tmp_path, architecture, monkeypatch):
    """liger's kernels need a GPU; this tests that they are in place and were chosen for the right architecture."""
    pytest.importorskip("liger_kernel")
    modeling = __import__(f"transformers.models.{architecture}.modeling_{architecture}", fromlist=["x"])
    for name in ("apply_rotary_pos_emb", *(n for n in vars(modeling) if n.endswith(("RMSNorm", "MLP")))):
        monkeypatch.setattr(modeling, name, getattr(modeling, name))  # put back afterwards
    model = make_model(tmp_path, architecture)
    use_liger(model)
    layer = decoder_layers(model)[0]
    assert "liger" in layer.mlp.forward.__module__ or "Liger" in type(layer.mlp).__name__
    assert "Liger" in type(layer.input_layernorm).__name__ or "liger" in layer.input_layernorm.forward.__module__


def test_float8_is_close(tmp_path):
    """Emulated on the CPU: the error is that of rounding to 8 bits, so the function is the same."""
    pytest.importorskip("torchao")
    model = make_model(tmp_path, "qwen2", hidden_size=64, intermediate_size=128)
    batch = batches()[1]
    _, expected = learn(model, batch)
    before = {name: p.shape for name, p in model.named_parameters()}
    assert use_float8(model, emulate=True) == 3 * 7
    assert {name: p.shape for name, p in model.named_parameters()} == before
    _, got = learn(model, batch)
    together = [torch.cat([g[name].flatten() for name in expected]) for g in (got, expected)]
    assert 1e-3 < tiny.relative_error(*together) < 0.2


def test_float8_leaves_out_what_the_hardware_cannot(tmp_path):
    pytest.importorskip("torchao")
    model = make_model(tmp_path, "qwen2", hidden_size=64, intermediate_size=40)
    assert use_float8(model, emulate=True) == 3 * 4  # the MLPs stay
    assert np.isfinite(learn(model, batches()[0])[0])


@pytest.mark.parametrize(
    ("use", "module", "package"),
    [
        (use_liger, "liger_kernel.transformers.monkey_patch", "liger-kernel"),
        (use_float8, "torchao.float8", "torchao"),
    ],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, use, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PQMError, match=f"needs {package}; install it with `pip install {package}`"):
        use(make_model(tmp_path))


def test_float8_that_would_do_nothing_is_refused(tmp_path):
    pytest.importorskip("torchao")
    with pytest.raises(PQMError, match="float8: gpt2 has no linear layers"):
        use_float8(make_model(tmp_path, "gpt2"), emulate=True)
