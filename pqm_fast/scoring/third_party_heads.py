"""Loads third-party PRMs with their two-label head reduced to one Q-value. Weights are read by name; no code of the
model is run.

The logit of the good label minus that of the bad one is linear in the head's input: a head with two rows becomes the
difference of the rows, and only two rows of a language model's head are kept.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from pqm_fast.data.encode import single_id
from pqm_fast.errors import PQMError
from pqm_fast.model.loading import classification_class, head_name, read_weights, short_reason
from pqm_fast.scoring.third_party import PRMSpec

# config keys with which an architecture changes the logits after its head, and so their differences
_CHANGES_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")


def load_third_party(
    path: str, config: Any, dtype: torch.dtype, spec: PRMSpec, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """A `*ForTokenClassification` from a folder or hub id, on the CPU, whose head (float32) gives one Q-value per
    token.

    `config` comes from `load_config`. Raises PQMError if the weights are not those of such a model.
    """
    try:
        if spec.head == "tokens":
            good, bad = (_token_id(path, tokenizer, token) for token in (spec.good_token, spec.bad_token))
            return _from_language_model(path, config, dtype, good, bad)
        return _from_classifier(path, config, dtype, hidden_layer=spec.head == "mlp")
    except PQMError:
        raise
    except Exception as error:  # the errors that transformers raises have no common class
        raise PQMError(f"{path}: this model cannot be loaded: {short_reason(error)}") from error


def _token_id(path: str, tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    token_id = single_id(tokenizer, token)
    if token_id is None:
        raise PQMError(f"{path}: {token!r} is not one token of its tokenizer; set --good-token and --bad-token")
    return token_id


def _from_classifier(path: str, config: Any, dtype: torch.dtype, *, hidden_layer: bool) -> PreTrainedModel:
    config.num_labels = 2
    model_class = classification_class(type(config))
    if hidden_layer:
        model_class = _with_hidden_layer(model_class)
    model = _load(path, model_class, config, dtype, "no head of two labels" + " with a hidden layer" * hidden_layer)
    name = head_name(model)
    head = model.get_submodule(name).float()
    *earlier_layers, last_layer = head.children() if isinstance(head, nn.Sequential) else [head]
    assert isinstance(last_layer, nn.Linear)
    bias = None if last_layer.bias is None else last_layer.bias[1] - last_layer.bias[0]
    difference = _difference(good=last_layer.weight[1], bad=last_layer.weight[0], bias=bias)
    setattr(model, name, nn.Sequential(*earlier_layers, difference) if earlier_layers else difference)
    model.config.num_labels = 1
    return model


def _with_hidden_layer(model_class: Any) -> Any:
    def init(self: Any, config: Any) -> None:
        model_class.__init__(self, config)
        width = config.get_text_config().hidden_size
        self.score = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    return type(model_class.__name__, (model_class,), {"__init__": init, "__module__": model_class.__module__})


def _from_language_model(path: str, config: Any, dtype: torch.dtype, good: int, bad: int) -> PreTrainedModel:
    text_config = config.get_text_config()
    changed = [name for name in _CHANGES_LOGITS if getattr(text_config, name, None) not in (None, 1, 1.0)]
    if changed:
        raise PQMError(
            f"{path}: {config.model_type} changes its logits ({changed[0]}), so their difference is not a Q-value"
        )
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    language_model = _load(path, model_class, config, dtype, "no head of a language model")
    head = language_model.get_output_embeddings()
    good_row, bad_row = head.weight[[good, bad]].float()
    bias = getattr(head, "bias", None)
    with torch.device("meta"):  # all of its weights are replaced below
        model = classification_class(type(config))(language_model.config)
    prefix = model.base_model_prefix
    setattr(model, prefix, language_model.get_submodule(prefix))
    bias_difference = None if bias is None else bias[good].float() - bias[bad].float()
    setattr(model, head_name(model), _difference(good=good_row, bad=bad_row, bias=bias_difference))
    return model


def _load(path: str, model_class: Any, config: Any, dtype: torch.dtype, without_head: str) -> PreTrainedModel:
    """The model with all its weights. Otherwise raises PQMError; `without_head` says in words which head is missing."""
    model, unfit = read_weights(path, model_class, config, dtype)
    if wrong := sorted(unfit.missing | unfit.wrong_shape):
        in_backbone = any(key.startswith(f"{model.base_model_prefix}.") for key in wrong)
        fault = "other weights than its config.json says" if in_backbone else without_head
        raise PQMError(
            f"{path}: it has {fault}: {len(wrong)} tensors are missing or of another shape, such as {wrong[0]}; "
            "check --preset and --head"
        )
    return model


@torch.no_grad()
def _difference(*, good: torch.Tensor, bad: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A linear layer (float32) with one output: the difference of two rows [D] of another layer, and of their biases
    (`bias`, scalar)."""
    head = nn.Linear(len(good), 1, dtype=torch.float32)
    head.weight.copy_((good - bad)[None])
    head.bias.fill_(0.0 if bias is None else float(bias))
    return head
