"""A backbone cut after a layer: its hidden states are the full model's there, and it is an ordinary checkpoint."""

import numpy as np
import pytest
import tiny
import torch
from packed_models import STEP_ROWS, make_model, trajectories
from torch import nn
from transformers import AutoConfig, AutoModelForTokenClassification

from pqm_fast.data.encode import Encoded, Template
from pqm_fast.data.pack import pack
from pqm_fast.errors import PQMError
from pqm_fast.model.cut import cut_backbone, decoder_layers, final_norm, norm_layer
from pqm_fast.model.loading import classification_class
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.scoring.scorer import Scorer
from pqm_fast.train.layers import recompute

DEPTH = 3
CASES = {name: {} for name in tiny.ARCHITECTURES} | {
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
}


def made(architecture, **changes):
    """A `*ForTokenClassification` in which norms and biases, too, differ from what a new model has."""
    torch.manual_seed(0)
    config = tiny.config(architecture, num_labels=1, classifier_dropout=0.0, **(CASES[architecture] | changes))
    classifier = classification_class(type(config))._from_config(config)
    for parameter in classifier.parameters():
        nn.init.normal_(parameter, std=0.2)
    return classifier.eval()


@torch.no_grad()
def states(classifier, ids):
    """Of each layer, the hidden states after the final norm, [T, D], through transformers' own attention."""
    backbone = classifier.get_submodule(classifier.base_model_prefix)
    outputs = []
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, out: outputs.append(out[0] if type(out) is tuple else out))
        for layer in decoder_layers(backbone, classifier.config)
    ]
    classifier.set_attn_implementation("eager")
    last = backbone(input_ids=ids[None], use_cache=False).last_hidden_state[0]
    for hook in hooks:
        hook.remove()
    normed = [norm_layer(backbone)(output)[0] for output in outputs]
    assert torch.equal(normed[-1], last)
    return normed


@pytest.mark.parametrize("layers", range(1, DEPTH))
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_cut_backbone_is_a_checkpoint(tmp_path, architecture, layers):
    classifier = made(architecture)
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 90, 24))
    expected = states(classifier, ids)[layers - 1]
    cut_backbone(classifier, layers)
    model = StepQModel.of(classifier, "cut")
    q = (expected @ model.head.weight.view(-1) + model.head.bias).detach()
    model.save(tmp_path / "out", tiny.tokenizer(), Recipe(Template(step_token="last")), torch.float32)
    plain = load(tmp_path / "out")
    assert len(states(plain, ids)) == layers
    assert (states(plain, ids)[-1] - expected).abs().max() <= 1e-5
    with torch.no_grad():
        logits = plain(input_ids=ids[None], use_cache=False).logits[0, :, 0]
    assert (logits - q).abs().max() <= 1e-5

    steps = np.array([4, 9, 10, 23], dtype=np.int32)
    encoded = Encoded(ids.int().numpy(), steps, steps_cut=0)
    [scores] = Scorer.from_pretrained(tmp_path / "out", device="cpu").score_encoded([("question", encoded)])
    assert scores == pytest.approx(q[steps].tolist(), abs=1e-5)


def load(folder):
    """Through transformers alone, without a missing tensor or one too many."""
    config = AutoConfig.from_pretrained(folder)
    kind = AutoModelForTokenClassification
    if type(config) not in kind._model_mapping:
        kind = classification_class(type(config))
    model, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    return model.eval()


def entries(config):
    return {name: value for name, value in config.to_dict().items() if name not in ("num_hidden_layers", "n_layer")}


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_only_entries_of_the_depth_change(architecture):
    """And none do at full depth."""
    classifier = made(architecture)
    config = classifier.config
    before, tensors = entries(config), list(classifier.state_dict())
    cut_backbone(classifier, DEPTH)
    assert entries(config) == before
    assert list(classifier.state_dict()) == tensors
    cut_backbone(classifier, 2)
    assert config.num_hidden_layers == 2
    if "layer_types" in before:
        before["layer_types"] = before["layer_types"][:2]
    if "max_window_layers" in before:
        before["max_window_layers"] = min(before["max_window_layers"], 2)
    assert entries(config) == before


def test_ids_of_tokens_are_no_list_of_layers():
    classifier = made("llama", eos_token_id=[1, 2, 3])
    cut_backbone(classifier, 2)
    assert classifier.config.eos_token_id == [1, 2, 3]


@pytest.mark.parametrize("architecture", STEP_ROWS)
@pytest.mark.parametrize("step_rows_only", [True, False])
def test_the_new_last_layer_computes_what_the_old_one_did(tmp_path, architecture, step_rows_only):
    """Whether the model is cut before it is wrapped or after."""
    model = make_model(tmp_path, architecture, step_rows_only)
    batch = pack(list(enumerate(trajectories())))
    cut_backbone(model.classifier, 2)
    rows = []
    model.backbone.layers[-1].mlp.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape[1]))
    scores = model.scores(batch)
    assert model.step_rows_only == step_rows_only
    assert rows == [len(batch.step_tokens.unique()) if step_rows_only else len(batch.input_ids)]
    again = StepQModel(model.classifier)
    assert again.step_rows_only
    assert (again.scores(batch) - scores).abs().max() <= 1e-5


def test_what_cannot_be_cut(tmp_path):
    model = make_model(tmp_path)
    for layers in (0, -1, DEPTH + 1):
        with pytest.raises(PQMError, match=f"{layers} layers: the backbone has 3; give 1 to 3"):
            cut_backbone(model.classifier, layers)
    model.backbone.layers[0].mlp.extra = nn.Linear(2, 2)
    with pytest.raises(PQMError, match="it was changed after it was loaded"):
        cut_backbone(model.classifier, 2)
    assert len(model.backbone.layers) == model.config.num_hidden_layers == DEPTH

    model = make_model(tmp_path)
    recompute(model, DEPTH)
    with pytest.raises(PQMError, match="must be cut before its layers are compiled"):
        cut_backbone(model.classifier, 2)
    model.backbone.others = nn.ModuleList(model.backbone.layers)
    with pytest.raises(PQMError, match="llama: its decoder layers were not found"):
        decoder_layers(model.backbone, model.config)


def test_an_architecture_whose_depth_decides_more():
    """The last layer of a Gemma 4 attends to everything: transformers would change the kind of a layer cut at."""
    config = AutoConfig.for_model(
        "gemma4_text", **tiny.SHAPE | {"num_hidden_layers": 6, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    )
    with torch.device("meta"):
        classifier = classification_class(type(config))._from_config(config)
    before = config.to_dict()
    with pytest.raises(PQMError, match="gemma4_text: its backbone cannot be cut"):
        cut_backbone(classifier, 5)
    assert config.to_dict() == before
    assert len(classifier.model.layers) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_final_norm_by_its_definition(architecture, dtype):
    classifier = made(architecture)
    backbone = classifier.get_submodule(classifier.base_model_prefix)
    norm = norm_layer(backbone).to(dtype)
    found = final_norm(backbone)
    if architecture == "gpt2":
        assert found is None
        return
    weight, eps = found
    assert weight.dtype == torch.float32
    assert eps == classifier.config.rms_norm_eps
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    x[1] *= 1e-3
    expected = [
        [value / (sum(v * v for v in row) / 32 + eps) ** 0.5 * w for value, w in zip(row, weight.tolist(), strict=True)]
        for row in x.tolist()
    ]
    assert (norm.float()(x) - torch.tensor(expected)).abs().max() <= 1e-5


class Other(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm


class Centred(nn.RMSNorm):
    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


def test_other_final_norms():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(16))
    plain = nn.RMSNorm(16)
    plain.weight = weight
    found, eps = final_norm(Other(plain))
    assert found.equal(weight.detach())
    assert found.data_ptr() != weight.data_ptr()
    assert eps == torch.finfo(torch.float32).eps
    centred = Centred(16)
    for other in (centred, nn.LayerNorm(16), nn.LayerNorm(16, bias=False), nn.LayerNorm(16, elementwise_affine=False)):
        assert final_norm(Other(other)) is None
    with pytest.raises(PQMError, match="Linear: the norm after its last layer was not found"):
        final_norm(nn.Linear(2, 2))
