"""The depth of a backbone: its decoder layers, the norm after them, and a backbone cut after one of its layers.

The hidden states of a middle layer, through the final norm, are those of a backbone cut there. A head that was trained
on them and the cut backbone are an ordinary checkpoint, which costs less to run.
"""

import copy
import json
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pqm_fast.errors import PQMError
from pqm_fast.model.last_layer import is_restricted, restrict_to_step_rows
from pqm_fast.model.loading import classification_class, quiet_transformers, short_reason

NORM_NAMES = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "final_norm", "norm_f")
RMS_TOLERANCE = 1e-5  # in float32, relative to the largest value


def decoder_layers(backbone: nn.Module, config: Any) -> nn.ModuleList:
    """The decoder layers of a backbone, in order. `config`: the backbone's own or that of the model around it.

    Raises PQMError if they cannot be told from its other parts.
    """
    depth = config.get_text_config().num_hidden_layers
    found = [child for child in backbone.children() if isinstance(child, nn.ModuleList) and len(child) == depth]
    if len(found) != 1:
        raise PQMError(f"{config.model_type}: its decoder layers were not found")
    return found[0]


def norm_layer(backbone: nn.Module) -> nn.Module:
    """The norm after the last decoder layer. Raises PQMError if there is none under a known name."""
    for name in NORM_NAMES:
        module = getattr(backbone, name, None)
        if isinstance(module, nn.Module):
            return module
    raise PQMError(f"{type(backbone).__name__}: the norm after its last layer was not found")


@torch.no_grad()
def final_norm(backbone: nn.Module) -> tuple[torch.Tensor, float] | None:
    """(weight [D] float32, eps) if the final norm is x / sqrt(mean(x^2) + eps) * weight; None if it is another one,
    such as a LayerNorm.

    Gemma's norm multiplies by 1 + its parameter, which is then the weight. Decided by what the norm computes in
    float32, not by its class. Raises PQMError if the norm is not found.
    """
    module = norm_layer(backbone)
    parameters = list(module.parameters())
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if len(parameters) != 1 or parameters[0].ndim != 1:
        return None
    parameter = parameters[0].detach().float()
    eps = torch.finfo(torch.float32).eps if eps is None else float(eps)  # nn.RMSNorm's default
    # from rows so small that eps decides, to large ones; with a mean, which a LayerNorm takes away
    x = torch.randn(16, len(parameter), generator=torch.Generator().manual_seed(0)).add_(0.5).to(parameter.device)
    x *= torch.logspace(-4, 3, len(x), device=x.device)[:, None]
    expected = copy.deepcopy(module).float()(x)
    normed = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    for weight in (parameter, 1 + parameter):
        if (normed * weight - expected).abs().max() <= RMS_TOLERANCE * expected.abs().max():
            return weight.clone(), eps
    return None


def cut_backbone(classifier: PreTrainedModel, layers: int) -> None:
    """Keeps the first `layers` decoder layers of a `*ForTokenClassification`, in place; the final norm stays.

    The config follows, so that transformers loads what is saved from then on as the same model. If the last layer
    computed step rows only, the new one does. The full depth changes nothing.

    Raises PQMError for a number of layers that the backbone does not have, for layers that are not found, and for an
    architecture in which the depth decides more than the number of layers.
    """
    backbone = classifier.get_submodule(classifier.base_model_prefix)
    modules = decoder_layers(backbone, classifier.config)
    depth = len(modules)
    if not 1 <= layers <= depth:
        raise PQMError(f"{layers} layers: the backbone has {depth}; give 1 to {depth}")
    if layers == depth:
        return
    trial = copy.deepcopy(classifier.config)
    _cut_config(trial, layers)
    removed = {id(parameter) for module in modules[layers:] for parameter in module.parameters()}
    kept = {name: tensor.shape for name, tensor in classifier.named_parameters() if id(tensor) not in removed}
    _check_reload(trial, kept)

    restricted = is_restricted(modules[-1])
    del modules[layers:]
    _cut_config(classifier.config, layers)
    if restricted and not restrict_to_step_rows(backbone):
        raise PQMError("a backbone must be cut before its layers are compiled or computed again in the backward pass")


def _cut_config(config: Any, layers: int) -> None:
    text = config.get_text_config()
    for name, value in _lists(text).items():
        if len(value) == text.num_hidden_layers:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    if getattr(text, "max_window_layers", None) is not None:  # Qwen: from this layer on attention is sliding
        text.max_window_layers = min(text.max_window_layers, layers)


def _lists(config: Any) -> dict[str, list[Any]]:
    """The entries that may hold one value for each layer, such as `layer_types`."""
    entries = {name: list(value) for name, value in vars(config).items() if isinstance(value, list | tuple)}
    return {name: value for name, value in entries.items() if name != "architectures" and not name.endswith("_id")}


def _check_reload(config: Any, kept: dict[str, torch.Size]) -> None:
    """Raises PQMError unless a model that transformers makes from the saved `config` has the tensors `kept`."""
    try:
        again = type(config).from_dict(json.loads(config.to_json_string()))
        with torch.device("meta"), quiet_transformers():
            model = classification_class(type(again))._from_config(again)
    except Exception as error:
        raise PQMError(f"{config.model_type}: its backbone cannot be cut: {short_reason(error)}") from error
    same = {name: tensor.shape for name, tensor in model.named_parameters()} == kept
    if not same or _lists(again.get_text_config()) != _lists(config.get_text_config()):
        raise PQMError(
            f"{config.model_type}: its backbone cannot be cut: its depth decides more than its number of layers, or "
            "it was changed after it was loaded"
        )
